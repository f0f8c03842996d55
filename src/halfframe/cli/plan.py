"""``halfframe plan``: what a run would cost."""

from __future__ import annotations

import argparse
import json
from typing import Literal

from halfframe.cli.options import add_guidance, add_strategy, guidance_from
from halfframe.errors import OptionError

__all__ = ["add_arguments", "main"]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add everything that `main` reads to `parser`, description included."""
    parser.description = (
        "Predict what a run would cost, without loading a model: forward passes, latent frames, tokens and seconds of "
        "each expert of A14B on one H200, and the speed-up that follows."
    )
    parser.add_argument(
        "--size", default="1280*720", metavar="WxH", help="width*height in pixels (default: %(default)s)"
    )
    parser.add_argument(
        "--frame_num",
        type=int,
        default=81,
        metavar="N",
        help="video frames; hosts round to 4n+1 (default: %(default)s)",
    )
    parser.add_argument("--sample_steps", type=int, default=40, metavar="N", help="steps (default: %(default)s)")
    parser.add_argument(
        "--sample_shift",
        type=float,
        default=12.0,
        metavar="S",
        help="of the schedule; I2V has 5 (default: %(default)s)",
    )
    parser.add_argument(
        "--sample_solver", default="unipc", choices=("unipc", "dpm++"), help="the scheduler (default: %(default)s)"
    )
    parser.add_argument(
        "--boundary", type=float, default=0.875, metavar="B", help="of the experts; I2V has 0.9 (default: %(default)s)"
    )
    add_strategy(parser)
    add_guidance(parser)
    parser.add_argument("--no-guidance", action="store_true", help="one forward pass a step, as distilled experts make")
    parser.add_argument("--json", action="store_true", help="plain data instead of the table")


def main(arguments: argparse.Namespace) -> int:
    """Print the plan."""
    from halfframe.plan import plan
    from halfframe.plugins import DEFAULT_STRATEGY

    solver: Literal["unipc", "dpm++"] = arguments.sample_solver
    result = plan(
        size=_size(arguments.size),
        frame_num=arguments.frame_num,
        sampling_steps=arguments.sample_steps,
        shift=arguments.sample_shift,
        sample_solver=solver,
        boundary=arguments.boundary,
        strategy=arguments.strategy or DEFAULT_STRATEGY,
        guidance=guidance_from(arguments),
        guided=not arguments.no_guidance,
    )
    print(json.dumps(result.to_dict(), indent=2) if arguments.json else result)
    return 0


def _size(text: str) -> tuple[int, int]:
    """``"832*480"`` or ``"832x480"`` as (width, height)."""
    parts = text.lower().replace("x", "*").split("*")
    if len(parts) != 2 or not all(part.isdecimal() and int(part) for part in parts):
        raise OptionError(f"--size must be width*height in pixels, such as 832*480, got {text!r}.")
    return int(parts[0]), int(parts[1])
