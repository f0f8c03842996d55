"""Options that several commands share: a strategy, and guidance by the source's flags."""

from __future__ import annotations

import argparse

from halfframe.plugins.strategies import DEFAULT_STRATEGY
from halfframe.sampling.guidance import Guidance

__all__ = ["add_guidance", "add_strategy", "guidance_from"]


def add_strategy(parser: argparse._ActionsContainer, *, repeatable: bool = False) -> None:
    """``--strategy``: a name with options, or a recipe."""
    parser.add_argument(
        "--strategy",
        action="append" if repeatable else "store",
        metavar="NAME[:OPTIONS]",
        help="an installed strategy, as interleave:stride=3,full_start=1, a recipe, as recipe.json, or none for all "
        f"frames{'; repeatable' if repeatable else ''} (default: {DEFAULT_STRATEGY})",
    )


def add_guidance(parser: argparse._ActionsContainer) -> None:
    """The source's flags for guidance."""
    for flag, default, text in (
        ("--cfg_truncate_steps", 0, "skip the unconditional pass on the last N steps"),
        ("--cfg_truncate_high_noise_steps", 0, "skip it on the last N steps of the high-noise expert"),
        ("--cfg_every", 1, "of the other steps, compute it on every N-th of each expert"),
    ):
        parser.add_argument(flag, type=int, default=default, metavar="N", help=f"{text} (default: %(default)s)")


def guidance_from(arguments: argparse.Namespace) -> Guidance:
    """What those flags say."""
    last, last_high = arguments.cfg_truncate_steps, arguments.cfg_truncate_high_noise_steps
    return Guidance(skip_last=last, skip_last_high=last_high, every=arguments.cfg_every)
