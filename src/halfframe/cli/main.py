"""Commands and their arguments; errors become one line and an exit code."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path

import halfframe
from halfframe.cli import compare as compare_command
from halfframe.cli.flags import FLAGS_HELP, split_flags
from halfframe.cli.options import add_guidance, add_strategy, guidance_from
from halfframe.errors import HalfframeError
from halfframe.tinywan import demo as demo_command

__all__ = ["main"]


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command; returns the exit code: 0, 1 after an error of ours, 2 for wrong arguments (by argparse)."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    # The source's command lines with nothing but a prefix: python -m halfframe generate.py --task ...
    if arguments and arguments[0].endswith(".py"):
        arguments = ["run", *arguments]
    try:
        if arguments[:1] == ["run"] and arguments[1:2] not in ([], ["-h"], ["--help"]):
            return _run(arguments[1:])  # the script's own arguments are none of argparse's business
        parsed = _parser().parse_args(arguments)
        code: int = parsed.command(parsed)
        return code
    except HalfframeError as error:
        print(f"halfframe: error: {error}", file=sys.stderr)
        return 1


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="halfframe",
        description="Faster Wan2.2: part of the latent frames for the high-noise expert, on an unmodified install.",
    )
    parser.add_argument("--version", action="version", version=f"halfframe {halfframe.__version__}")
    commands = parser.add_subparsers(title="commands", required=True, metavar="COMMAND")

    run = commands.add_parser(
        "run",
        help="run upstream's own generate.py with halfframe on",
        description="Run a script that builds an official Wan2.2 pipeline, unmodified, with halfframe on.",
        usage="halfframe run SCRIPT.py [--] [SCRIPT ARGUMENTS] [FLAGS]",
        epilog=FLAGS_HELP,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    run.add_argument("script", help="upstream's generate.py")
    run.set_defaults(command=lambda _: 0)

    plan = commands.add_parser(
        "plan",
        help="what a run would cost, without loading a model",
        description="Frame-steps, tokens and predicted seconds on one H200 per expert, and the speed-up that follows.",
    )
    plan.add_argument("--size", default="1280*720", help="width*height in pixels (default: %(default)s)")
    plan.add_argument("--frame_num", type=int, default=81, help="video frames, 4n+1 (default: %(default)s)")
    plan.add_argument("--sample_steps", type=int, default=40, help="steps (default: %(default)s)")
    plan.add_argument("--sample_shift", type=float, default=12.0, help="schedule shift (default: %(default)s)")
    plan.add_argument("--sample_solver", default="unipc", choices=("unipc", "dpm++"))
    plan.add_argument(
        "--boundary", type=float, default=0.875, help="expert boundary, 0.9 for I2V (default: %(default)s)"
    )
    add_strategy(plan)
    add_guidance(plan)
    plan.add_argument("--no-guidance", action="store_true", help="one forward pass a step, as distilled experts make")
    plan.add_argument("--json", action="store_true", help="plain data instead of the table")
    plan.set_defaults(command=_plan)

    demo = commands.add_parser("demo", help="a small trained Wan2.2 on this machine: prompt in, videos out")
    demo_command.add_arguments(demo)
    demo.set_defaults(command=demo_command.main)

    comparison = commands.add_parser("compare", help="baseline and variants on the same prompts and seeds, or videos")
    compare_command.add_arguments(comparison)
    comparison.set_defaults(command=compare_command.main)

    listing = commands.add_parser("strategies", help="the installed strategies, and which package brings each")
    listing.add_argument("--json", action="store_true", help="plain data instead of the table")
    listing.set_defaults(command=_strategies)

    doctor = commands.add_parser("doctor", help="which hosts are here, which versions, and what would be refused")
    doctor.add_argument("--json", action="store_true", help="plain data instead of the text")
    doctor.set_defaults(command=_doctor)
    return parser


def _run(arguments: list[str]) -> int:
    from halfframe.cli.script import run_script

    script, *rest = arguments
    options, script_arguments = split_flags(rest)
    run_script(Path(script), script_arguments, **options)
    return 0


def _plan(arguments: argparse.Namespace) -> int:
    result = halfframe.plan(
        size=_size(arguments.size),
        frame_num=arguments.frame_num,
        sampling_steps=arguments.sample_steps,
        shift=arguments.sample_shift,
        sample_solver=arguments.sample_solver,
        boundary=arguments.boundary,
        strategy=arguments.strategy or halfframe.DEFAULT_STRATEGY,
        guidance=guidance_from(arguments),
        guided=not arguments.no_guidance,
    )
    print(json.dumps(result.to_dict(), indent=2) if arguments.json else result)
    return 0


def _strategies(arguments: argparse.Namespace) -> int:
    infos = halfframe.strategies()
    if arguments.json:
        keys = ("name", "distribution", "version", "value")
        print(json.dumps([{key: getattr(info, key) for key in keys} for info in infos], indent=2))
    else:
        width = max((len(info.name) for info in infos), default=0)
        for info in infos:
            print(f"{info.name:<{width}}  {info.distribution} {info.version}  {info.value}")
    return 0


def _doctor(arguments: argparse.Namespace) -> int:
    diagnosis = halfframe.doctor()
    print(json.dumps(diagnosis.to_dict(), indent=2) if arguments.json else diagnosis)
    return 0 if diagnosis.sound else 1


def _size(text: str) -> tuple[int, int]:
    """``"832*480"`` or ``"832x480"`` as (width, height)."""
    parts = text.lower().replace("x", "*").split("*")
    if len(parts) != 2 or not all(part.isdecimal() and int(part) for part in parts):
        raise HalfframeError(f"--size {text!r} is no size; give width*height in pixels, such as 832*480.")
    return int(parts[0]), int(parts[1])
