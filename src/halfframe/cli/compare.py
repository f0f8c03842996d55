"""``halfframe compare``: the comparison on the command line. `add_arguments` and `main` are all that a parser needs."""

from __future__ import annotations

import argparse
import shlex
import sys
import warnings
from pathlib import Path
from typing import TYPE_CHECKING

from halfframe.cli.options import add_guidance, add_pipeline, add_strategy, guidance_from, require_one_source
from halfframe.errors import HalfframeError, OptionError
from halfframe.plugins import DEFAULT_STRATEGY

if TYPE_CHECKING:
    from halfframe.compare import Comparison, Variant

__all__ = ["DESCRIPTION", "add_arguments", "main"]

DESCRIPTION = """\
Compare videos made with and without halfframe: seconds, speed-up, MSE, PSNR, SSIM, LPIPS where it is at hand, judder
and amount of motion, frame by frame and as a table. Either of finished files,

    halfframe compare baseline.mp4 variant.mp4 --output results

or by running a pipeline with the same prompts and seeds: as it is, with each strategy, and with as many fewer steps as
cost the same, which is the rival that any acceleration has to beat:

    halfframe compare --ckpt_dir Wan2.2-T2V-A14B --size 832x480 --frame_num 49 --sample_steps 20 --output results
    halfframe compare --diffusers Wan-AI/Wan2.2-T2V-A14B-Diffusers --strategy self-duplicate --output results
    halfframe compare --tiny --output results
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add everything that `main` reads to `parser`, description included."""
    parser.description = DESCRIPTION
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("videos", nargs="*", metavar="VIDEO", help="finished clips, the baseline first: mp4, npy, pt")

    add_pipeline(parser)

    variants = parser.add_argument_group("what to compare with the plain pipeline")
    add_strategy(variants, repeatable=True)
    add_guidance(variants)
    variants.add_argument(
        "--fewer_steps",
        action="append",
        type=int,
        metavar="N",
        help="also compare the plain pipeline with N steps; repeatable",
    )
    variants.add_argument("--no-equal-cost", action="store_true", help="do not add fewer steps at equal cost by itself")
    variants.add_argument(
        "--warm_up_steps", type=int, default=2, metavar="N", help="untimed steps before timing (default: %(default)s)"
    )
    variants.add_argument(
        "--repeat", type=int, default=1, metavar="N", help="timed runs of each clip, in turns (default: %(default)s)"
    )

    out = parser.add_argument_group("what to write")
    out.add_argument("--output", type=Path, metavar="DIR", help="folder for report.html, tables, strips and clips")
    out.add_argument("--resume", action="store_true", help="go on from what this command, interrupted, left in there")


def main(arguments: argparse.Namespace) -> int:
    """Run `halfframe compare`.

    0 if all went well; 1 if a variant failed or nothing could be compared; 130 if it was interrupted.
    """
    from halfframe.compare import markdown  # not at the top: --help needs no torch

    try:
        with warnings.catch_warnings():
            # Upstream asks for CUDA autocast in every block; without CUDA that does nothing but warn.
            warnings.filterwarnings("ignore", "CUDA is not available or torch_xla is imported", UserWarning)
            warnings.filterwarnings("ignore", ".*torch.cuda.amp.autocast", FutureWarning)
            comparison = _compared(arguments)
    except HalfframeError as error:
        _say(f"halfframe compare: error: {_one_line(error)}")
        return 1
    except KeyboardInterrupt:
        kept = f"; what is finished is in {arguments.output}, and --resume goes on from it" if arguments.output else ""
        _say(f"halfframe compare: interrupted{kept}")
        return 130
    print(markdown(comparison), end="")
    if arguments.output:
        _say(f"written to {arguments.output}")
    for results in comparison.failures:
        _say(f"halfframe compare: error: variant {results.variant.name!r} failed: {_one_line(results.error)}")
    for lost in comparison.lost:
        _say(f"halfframe compare: error: {_one_line(lost)}")
    return 1 if comparison.failures or comparison.lost else 0


def _compared(arguments: argparse.Namespace) -> Comparison:
    from halfframe.cli import pipelines
    from halfframe.compare import compare, compare_files

    require_one_source(arguments, VIDEO_files=arguments.videos)
    facts = {"command": shlex.join(["halfframe", *sys.argv[1:]])}
    if arguments.videos:
        if arguments.resume or arguments.repeat != 1:
            raise OptionError("--resume and --repeat are for runs of a pipeline; finished VIDEO files are only read.")
        return compare_files(arguments.videos, output=arguments.output, progress=_say, facts=facts)
    variants = _variants(arguments)
    loaded = pipelines.load(arguments, _say)
    if loaded.weights:
        facts["weights"] = loaded.weights
    return compare(
        loaded.generate,
        variants,
        prompts=arguments.prompt or [loaded.prompt],
        seeds=arguments.seed or [0],
        steps=loaded.steps,
        equal_cost=not arguments.no_equal_cost,
        warm_up_steps=arguments.warm_up_steps,
        repeat=arguments.repeat,
        resume=arguments.resume,
        output=arguments.output,
        progress=_say,
        random_weights=None if loaded.weights else True,
        facts=facts,
    )


def _variants(arguments: argparse.Namespace) -> list[Variant]:
    from halfframe.compare import Variant, fewer_steps

    guidance = guidance_from(arguments)
    truncated = guidance.skip_last or guidance.skip_last_high
    parts = [f"CFG truncated {guidance.skip_last}/{guidance.skip_last_high}"] if truncated else []
    parts += [f"CFG every {guidance.every}"] if guidance.every > 1 else []
    cut = ", ".join(parts)
    variants = []
    for name in dict.fromkeys(arguments.strategy or [DEFAULT_STRATEGY]):
        halved = name != "none"
        if halved:
            variants.append(Variant(name, {"strategy": name}))
        elif not guidance:
            raise OptionError(
                "--strategy none computes all frames, as the baseline; give --cfg_truncate_steps or --cfg_every too."
            )
        if guidance and not name.endswith(".json"):
            variants.append(Variant(f"{name}, {cut}" if halved else cut, {"strategy": name, "guidance": guidance}))
    return variants + [fewer_steps(steps) for steps in dict.fromkeys(arguments.fewer_steps or [])]


def _say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


def _one_line(error: object) -> str:
    return " ".join(str(error).split())
