"""TinyWan with and without halfframe, at 20, at 8 and at 4 steps with its LoRA, on a CPU: from a prompt to videos."""

from __future__ import annotations

import argparse
import shlex
import sys
import warnings
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from halfframe import DEFAULT_STRATEGY, Recipe
from halfframe.compare import Generate, Variant, compare, markdown
from halfframe.errors import OptionError
from halfframe_tinywan.generation import generate, settings
from halfframe_tinywan.language import parse_prompt
from halfframe_tinywan.models import LORA_STEPS, load_diffusers, load_wan
from halfframe_tinywan.world import SIDE, VIDEO_FRAMES

__all__ = ["PROMPT", "add_arguments", "main"]

PROMPT = "a big red ball and a small green square over moss"
_SHOWN = (DEFAULT_STRATEGY, "self-duplicate")
_LORA = ("full", "full", "full", "reuse")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add everything that `main` reads to `parser`, description included."""
    parser.description = (
        "Make a clip with TinyWan, a small trained Wan2.2 (a toy): as it is, on part of the frames, and with fewer "
        "steps at equal cost. Writes a page to look at (report.html), videos, pictures and a table for each number of "
        "steps. No download, no GPU."
    )
    parser.add_argument("--prompt", default=PROMPT, help="in TinyWan's own language (default: %(default)r)")
    parser.add_argument("--seed", type=int, default=0, help="of the noise (default: %(default)s)")
    parser.add_argument("--sample_steps", type=int, nargs="*", default=[20, 8], help="(default: %(default)s)")
    parser.add_argument("--no-lora", action="store_true", help="leave out the 4-step LoRA")
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
    runs = [("t2v", steps) for steps in arguments.sample_steps] + [("lora", LORA_STEPS)] * (not arguments.no_lora)
    shown = [Variant(text, {"strategy": text}) for text in arguments.strategy or _SHOWN]
    recipe = Variant(f"recipe {' '.join(_LORA)}", {"strategy": Recipe(_LORA)})
    failed = False
    for kind, steps in runs:
        pipe = load_wan(kind) if arguments.host == "wan" else load_diffusers(kind)
        given = settings(kind)

        def clip(prompt: str, seed: int, steps: int, pipe: Any = pipe, given: Any = given) -> Tensor:
            return generate(pipe, [prompt], [seed], **{**given, "steps": steps})[0].permute(1, 2, 3, 0).clamp(0, 1)

        facts = {
            "pipeline": f"{arguments.host} {type(pipe).__name__}",
            "video": f"{VIDEO_FRAMES} frames {SIDE}x{SIDE}",
            "dtype": "float32",
            "scheduler": "UniPC",
            "shift": given["shift"],
            "guidance_scale": given["guidance"],
        }
        output = arguments.output / (f"{steps}-steps" if kind == "t2v" else f"{steps}-steps-lora")
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message=".*autocast")  # the official package asks for CUDA's throughout
            comparison = compare(
                Generate(pipe, clip, torch.device("cpu"), facts),
                shown if kind == "t2v" or arguments.strategy else [recipe],
                prompts=[arguments.prompt],
                seeds=[arguments.seed],
                steps=steps,
                output=output,
                progress=lambda line: print(line, file=sys.stderr, flush=True),
                facts={"weights": "TinyWan's", "command": shlex.join(sys.argv)},
            )
        print(markdown(comparison), end="")
        failed = failed or bool(comparison.failures or comparison.lost)
    print(f"look at report.html in each folder of {arguments.output}: the clips side by side", file=sys.stderr)
    return 1 if failed else 0


if __name__ == "__main__":
    _parser = argparse.ArgumentParser()
    add_arguments(_parser)
    sys.exit(main(_parser.parse_args()))
