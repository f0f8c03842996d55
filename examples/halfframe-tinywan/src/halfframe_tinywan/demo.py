"""``halfframe demo``: TinyWan with and without halfframe at 20, 8 and 4 steps, from a prompt to videos and a table."""

from __future__ import annotations

import argparse
import shlex
import sys
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from halfframe.errors import OptionError
from halfframe.plugins import DEFAULT_STRATEGY

if TYPE_CHECKING:
    from halfframe.compare import Comparison, Generate, Variant

__all__ = ["PROMPT", "add_arguments", "main"]

PROMPT = "a big red ball and a small green square over moss"
_WHOLE_PHASE = "self-duplicate"
_LORA_MOVES = ("full", "full", "full", "reuse")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add everything that `main` reads to `parser`, description included."""
    parser.description = (
        "Make a clip with TinyWan, a small trained Wan2.2 (a toy): plain, with strategies, and with fewer steps at "
        "equal cost; then the same with its LoRA pair, which needs 4 steps. Each becomes a folder with report.html, "
        "videos and tables. No download, no GPU."
    )
    parser.add_argument("--prompt", default=PROMPT, help="in TinyWan's own language (default: %(default)r)")
    parser.add_argument("--seed", type=int, default=0, help="of the noise (default: %(default)s)")
    parser.add_argument(
        "--sample_steps",
        type=int,
        nargs="*",
        default=[20, 8],
        metavar="N",
        help="without the LoRA; no number for the LoRA alone (default: 20 8)",
    )
    parser.add_argument("--no-lora", action="store_true", help="leave out the LoRA")
    parser.add_argument(
        "--strategy",
        action="append",
        metavar="NAME[:OPTIONS]",
        help=f"an installed strategy or a recipe, with and without the LoRA; repeatable (default: {DEFAULT_STRATEGY} "
        f"and {_WHOLE_PHASE}; with the LoRA the recipe {' '.join(_LORA_MOVES)})",
    )
    parser.add_argument("--frame_num", type=int, default=81, metavar="N", help="video frames, 4n+1 (default: 81)")
    parser.add_argument("--host", choices=("diffusers", "wan"), default="diffusers", help="whose pipeline runs it")
    parser.add_argument(
        "--repeat", type=int, default=1, metavar="N", help="timed runs of each clip, in turns (default: %(default)s)"
    )
    parser.add_argument("--threads", type=int, default=1, help="CPU threads (default: %(default)s)")
    parser.add_argument("--output", type=Path, default=Path("demo"), metavar="DIR", help="(default: %(default)s)")


def main(arguments: argparse.Namespace) -> int:
    """Run the demo: 0 if all went well, 1 if a variant failed or a file was not written, 130 if interrupted."""
    import torch  # here and below, not at the top: --help needs no torch

    from halfframe.compare import markdown
    from halfframe.compare.progress import Teller
    from halfframe_tinywan.models import LORA_STEPS

    _check(arguments)
    torch.set_num_threads(arguments.threads)
    runs = [("t2v", steps) for steps in dict.fromkeys(arguments.sample_steps)]
    runs += [] if arguments.no_lora else [("lora", LORA_STEPS)]
    pipes: dict[str, Generate] = {}
    say = Teller("halfframe demo")
    wrong: list[str] = []
    seen: list[str] = []
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "CUDA is not available or torch_xla is imported", UserWarning)
        warnings.filterwarnings("ignore", ".*torch.cuda.amp.autocast", FutureWarning)
        for kind, steps in runs:
            folder = arguments.output / (f"{steps}-steps" if kind == "t2v" else f"{steps}-steps-lora")
            try:
                if kind not in pipes:
                    say(f"loading TinyWan{' with its LoRA pair' if kind == 'lora' else ''}, one untimed clip")
                    pipes = {kind: _loaded(arguments, kind)}
                with say:
                    comparison = _compared(arguments, pipes[kind], kind, steps, folder, say)
            except KeyboardInterrupt:
                say(f"halfframe demo: interrupted; what is finished is in {arguments.output}")
                return 130
            print(markdown(comparison), flush=True)
            wrong += [f"variant {row.variant.name!r} failed: {row.error}" for row in comparison.failures]
            wrong += comparison.lost
            seen += _reports(comparison, folder)
    say("What to look at, in a browser: the clips play in step, the table and the notes are below them.")
    for line in seen:
        say(f"  {line}")
    if arguments.repeat == 1:
        say("One run of each clip says little of its speed; --repeat 5 says more.")
    for line in wrong:
        say(f"halfframe demo: error: {' '.join(line.split())}")
    return 1 if wrong else 0


def _check(arguments: argparse.Namespace) -> None:
    """Refuse what cannot work before anything is loaded or written."""
    from halfframe.compare.generators import check_seeds
    from halfframe.plugins.strategies import resolve_strategy
    from halfframe.sampling.frames import require_whole_groups
    from halfframe_tinywan.language import parse_prompt

    parse_prompt(arguments.prompt)
    check_seeds([arguments.seed])
    require_whole_groups(arguments.frame_num)
    for name in ("threads", "repeat"):
        if getattr(arguments, name) < 1:
            raise OptionError(f"--{name} must be 1 or more, got {getattr(arguments, name)}.")
    if arguments.no_lora and not arguments.sample_steps:
        raise OptionError("--sample_steps has no number and --no-lora is given, so nothing is shown; leave out one.")
    if min(arguments.sample_steps, default=1) < 1:
        raise OptionError(f"--sample_steps must be 1 or more each, got {min(arguments.sample_steps)}.")
    for text in arguments.strategy or ():
        resolve_strategy(text, {})


def _loaded(arguments: argparse.Namespace, kind: str) -> Generate:
    """The pipeline of `kind`, after a clip of one step that warms it up."""
    from halfframe_tinywan.comparing import tinywan_generate

    ready = tinywan_generate(kind, arguments.host, video_frames=arguments.frame_num)
    ready(arguments.prompt, arguments.seed, 1)
    return ready


def _variants(strategies: Sequence[str] | None, kind: str) -> list[Variant]:
    from halfframe.compare import Variant
    from halfframe.strategies.recipe import Recipe

    if strategies:
        return [Variant(text, {"strategy": text}) for text in dict.fromkeys(strategies)]
    if kind == "lora":
        return [Variant(f"recipe {' '.join(_LORA_MOVES)}", {"strategy": Recipe(_LORA_MOVES)})]
    note = "halves the whole high-noise phase, which decides on the take: expect another take, and little motion"
    return [
        Variant(DEFAULT_STRATEGY, {"strategy": DEFAULT_STRATEGY}, note="the default"),
        Variant(_WHOLE_PHASE, {"strategy": _WHOLE_PHASE}, note=note),
    ]


def _compared(
    arguments: argparse.Namespace, ready: Generate, kind: str, steps: int, folder: Path, say: Callable[[str], None]
) -> Comparison:
    from halfframe.compare import compare

    return compare(
        ready,
        _variants(arguments.strategy, kind),
        prompts=[arguments.prompt],
        seeds=[arguments.seed],
        steps=steps,
        warm_up_steps=0,
        repeat=arguments.repeat,
        output=folder,
        progress=say,
        random_weights=False,
        facts={
            "weights": ready.facts["weights"],
            "threads": arguments.threads,
            "warm-up": "one clip of one step for each pipeline, untimed",
            "decoding": "the VAE's is in the seconds, and for a model this small a large part; predicted leaves it out",
            "command": shlex.join(["halfframe", *sys.argv[1:]]),
        },
    )


def _reports(comparison: Comparison, folder: Path) -> list[str]:
    """The page of `comparison`, if it was written, with what it shows; a folder used before holds older ones too."""
    if any(line.startswith("report") for line in comparison.lost):
        return []
    page = max(folder.glob("report*.html"), key=lambda path: path.stat().st_mtime)
    return [f"{page}: {'; '.join(row.variant.name for row in comparison.rows)}"]
