"""TinyWan with and without halfframe at 20 and at 8 steps, on a CPU, from a prompt to videos and a table."""

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
from halfframe_tinywan.generation import generate
from halfframe_tinywan.language import parse_prompt
from halfframe_tinywan.models import GUIDANCE, SHIFT, load_diffusers, load_wan
from halfframe_tinywan.world import SIDE, VIDEO_FRAMES

__all__ = ["PROMPT", "add_arguments", "main"]

PROMPT = "a big red ball and a small green square over moss"
_SHOWN = ("merge:stride=4,until=1", "interleave")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add everything that `main` reads to `parser`, description included."""
    parser.description = (
        "Make a clip with TinyWan, a small trained Wan2.2 (a toy): as it is, halved, and with fewer steps at equal "
        "cost. Writes videos, a strip of pictures and a table for each number of steps. No download, no GPU."
    )
    parser.add_argument("--prompt", default=PROMPT, help="in TinyWan's own language (default: %(default)r)")
    parser.add_argument("--seed", type=int, default=0, help="of the noise (default: %(default)s)")
    parser.add_argument("--sample_steps", type=int, nargs="+", default=[20, 8], help="(default: %(default)s)")
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
    """Run the demo: 0 if all went well, 1 if a variant failed."""
    parse_prompt(arguments.prompt)
    if arguments.threads < 1:
        raise OptionError(f"--threads must be 1 or more, got {arguments.threads}.")
    torch.set_num_threads(arguments.threads)
    pipe = load_wan() if arguments.host == "wan" else load_diffusers()

    def clip(prompt: str, seed: int, steps: int) -> Tensor:
        return generate(pipe, [prompt], [seed], steps=steps)[0].permute(1, 2, 3, 0).clamp(0, 1)

    facts = {
        "pipeline": f"{arguments.host} {type(pipe).__name__}",
        "video": f"{VIDEO_FRAMES} frames {SIDE}x{SIDE}",
        "dtype": "float32",
        "scheduler": "UniPC",
        "shift": SHIFT,
        "guidance_scale": GUIDANCE,
    }
    failed = False
    for steps in arguments.sample_steps:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message=".*autocast")  # the official package asks for CUDA's throughout
            comparison = compare(
                Generate(pipe, clip, torch.device("cpu"), facts),
                [Variant(text, {"strategy": text}) for text in arguments.strategy or _SHOWN],
                prompts=[arguments.prompt],
                seeds=[arguments.seed],
                steps=steps,
                output=arguments.output / f"{steps}-steps",
                progress=lambda line: print(line, file=sys.stderr, flush=True),
                facts={"weights": "TinyWan's", "command": shlex.join(sys.argv)},
            )
        print(markdown(comparison), end="")
        failed = failed or bool(comparison.failures)
    print(f"videos, pictures and tables are in {arguments.output}", file=sys.stderr)
    return 1 if failed else 0


if __name__ == "__main__":
    _parser = argparse.ArgumentParser()
    add_arguments(_parser)
    sys.exit(main(_parser.parse_args()))
