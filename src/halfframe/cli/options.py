"""Options that several commands share: a strategy, and guidance by the source's flags."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING

from halfframe.errors import OptionError
from halfframe.plugins import DEFAULT_STRATEGY

if TYPE_CHECKING:
    from halfframe.sampling.guidance import Guidance

__all__ = ["add_guidance", "add_pipeline", "add_strategy", "guidance_from", "require_one_source"]


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
        ("--cfg_every", 1, "on the other steps, compute it on every N-th of each expert"),
    ):
        parser.add_argument(flag, type=int, default=default, metavar="N", help=f"{text} (default: %(default)s)")


def guidance_from(arguments: argparse.Namespace) -> Guidance:
    """What those flags say."""
    from halfframe.sampling.guidance import Guidance

    last, last_high = arguments.cfg_truncate_steps, arguments.cfg_truncate_high_noise_steps
    return Guidance(skip_last=last, skip_last_high=last_high, every=arguments.cfg_every)


def add_pipeline(parser: argparse.ArgumentParser) -> None:
    """Which pipeline is loaded, and what it makes: see `halfframe.cli.pipelines.load`."""
    source = parser.add_argument_group("a pipeline, one of")
    source.add_argument("--tiny", action="store_true", help="a small official pipeline of random weights, on the CPU")
    source.add_argument(
        "--tinywan",
        choices=("t2v", "lora", "i2v"),
        help="a small trained pipeline, a toy, on the CPU; its prompts have a language of their own",
    )
    source.add_argument("--diffusers", metavar="PATH_OR_ID", help="a diffusers Wan2.2 text-to-video pipeline")
    source.add_argument("--ckpt_dir", metavar="DIR", help="weights of the official package, which must be installed")
    source.add_argument("--task", default="t2v-A14B", help="what --ckpt_dir holds; only %(default)s can be loaded here")
    source.add_argument("--no-offload", action="store_true", help="keep all parts on the GPU")
    source.add_argument(
        "--sdpa", action="store_true", help="PyTorch's attention instead of flash-attention (--ckpt_dir)"
    )

    clip = parser.add_argument_group("what to make")
    clip.add_argument(
        "--prompt",
        action="append",
        metavar="TEXT",
        help="repeatable (default: a woman in a park; a ball with --tinywan)",
    )
    clip.add_argument("--seed", action="append", type=int, metavar="N", help="repeatable (default: 0)")
    clip.add_argument("--frame_num", type=int, metavar="N", help="video frames, 4n+1 (default: 81; 17 with --tiny)")
    clip.add_argument(
        "--size",
        metavar="WxH",
        help="pixels, multiples of 16 (default: 1280x720; 64x48 with --tiny; none with --tinywan)",
    )
    clip.add_argument(
        "--sample_steps", type=int, metavar="N", help="steps (default: 40; 8 with --tiny; 20 or 4 with --tinywan)"
    )
    clip.add_argument("--sample_shift", type=float, metavar="S", help="of the schedule (default: the pipeline's own)")


def require_one_source(arguments: argparse.Namespace, **others: object) -> None:
    """Raise `OptionError` unless one of `add_pipeline`'s pipelines is given, or one of `others`, name -> value."""
    sources = {
        **{name.replace("_", " "): bool(value) for name, value in others.items()},
        "--tiny": arguments.tiny,
        "--tinywan": arguments.tinywan is not None,
        "--diffusers": arguments.diffusers is not None,
        "--ckpt_dir": arguments.ckpt_dir is not None,
    }
    given = [name for name, is_given in sources.items() if is_given]
    if len(given) != 1:
        raise OptionError(f"{' and '.join(given) or 'nothing'} given; needed: one of {', '.join(sources)}. See --help.")
