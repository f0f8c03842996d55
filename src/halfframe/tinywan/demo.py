"""``halfframe demo``: TinyWan with and without halfframe, on a CPU, from a prompt to a video."""

from __future__ import annotations

import argparse
import shlex
import sys
import warnings
from pathlib import Path

import torch
from torch import Tensor

from halfframe.compare import Generate, Variant, compare, markdown
from halfframe.errors import OptionError
from halfframe.tinywan.clips import parse_prompt
from halfframe.tinywan.generation import GUIDE_SCALE, NUM_FRAMES, generate
from halfframe.tinywan.model import SHIFT, SIDE, load_diffusers, load_wan

__all__ = ["PROMPT", "add_arguments", "main"]

_SHOWN = ("self-duplicate", "interleave", "merge")
PROMPT = "a big red ball moves left fast over stripes, a small green square stays"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add everything that `main` reads to `parser`, description included."""
    parser.description = (
        "Make a clip with TinyWan, a small trained Wan2.2 that comes with halfframe: as it is, halved, and with fewer "
        "steps at equal cost. Writes videos, a strip of pictures and a table. No download, no GPU."
    )
    parser.add_argument("--prompt", default=PROMPT, help="in TinyWan's own language (default: %(default)r)")
    parser.add_argument("--seed", type=int, default=0, help="of the noise (default: %(default)s)")
    parser.add_argument("--sample_steps", type=int, default=20, help="steps (default: %(default)s)")
    parser.add_argument(
        "--strategy",
        action="append",
        metavar="NAME[:OPTIONS]",
        help=f"an installed strategy; repeatable (default: {' and '.join(_SHOWN)})",
    )
    parser.add_argument("--host", choices=("diffusers", "wan"), default="diffusers", help="whose pipeline runs it")
    parser.add_argument("--output", type=Path, default=Path("demo"), metavar="DIR", help="(default: %(default)s)")
    parser.add_argument("--threads", type=int, default=1, help="CPU threads (default: %(default)s)")


def main(arguments: argparse.Namespace) -> int:
    """Run `halfframe demo`: 0 if all went well, 1 if a variant failed."""
    parse_prompt(arguments.prompt)
    if arguments.threads < 1:
        raise OptionError(f"--threads must be 1 or more, got {arguments.threads}.")
    torch.set_num_threads(arguments.threads)
    pipe = load_wan() if arguments.host == "wan" else load_diffusers()

    def clip(prompt: str, seed: int, steps: int) -> Tensor:
        return generate(pipe, [prompt], [seed], num_steps=steps)[0].permute(1, 2, 3, 0).clamp(0, 1)

    facts = {
        "pipeline": f"{arguments.host} {type(pipe).__name__}",
        "video": f"{NUM_FRAMES} frames {SIDE}x{SIDE}",
        "dtype": "float32",
        "scheduler": "UniPC",
        "shift": SHIFT,
        "guidance_scale": GUIDE_SCALE,
    }
    names = arguments.strategy or _SHOWN
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*autocast")  # the official package asks for CUDA's throughout
        comparison = compare(
            Generate(pipe, clip, torch.device("cpu"), facts),
            [_variant(text) for text in names],
            prompts=[arguments.prompt],
            seeds=[arguments.seed],
            steps=arguments.sample_steps,
            output=arguments.output,
            progress=lambda line: print(line, file=sys.stderr, flush=True),
            facts={"weights": "TinyWan's", "command": shlex.join(["halfframe", *sys.argv[1:]])},
        )
    print(markdown(comparison), end="")
    print(f"videos, pictures and tables are in {arguments.output}", file=sys.stderr)
    return 1 if comparison.failures else 0


def _variant(text: str) -> Variant:
    return Variant(text, {"strategy": text})
