"""The source's flags, taken out of a script's command line."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from typing import Any, NoReturn

from halfframe.errors import OptionError
from halfframe.plugins import parse_strategy
from halfframe.presets import find_preset

__all__ = ["FLAGS_HELP", "refuse_two_strategies", "split_flags"]

FLAGS_HELP = """\
flags (all other arguments are the script's own):
  --enable_half_frame_generation          half the latent frames for the high-noise expert (self-duplicate)
  --enable_improved_frame_completion      the same with previous-odd
  --half_frame_strategy NAME[:OPTIONS]    the same with any installed strategy: interleave:stride=3,full_start=1
  --half_frame_preset NAME                a strategy and its options: faithful, balanced or fast
  --cfg_truncate_steps N                  the last N steps go without the unconditional forward
  --cfg_truncate_high_noise_steps M       so do the last M high-noise steps
  --cfg_every N                           of the others, every N-th step of each expert has it
  --half_frame_preload                    bring the low-noise expert in early, copy none back to the host

examples:
  halfframe run generate.py -- --task t2v-A14B --ckpt_dir DIR --enable_half_frame_generation --prompt "..."
  torchrun --nproc_per_node=4 -m halfframe generate.py --ulysses_size 4 --enable_half_frame_generation ...
"""

# Upstream's tasks whose pipelines have one model for all timesteps.
_SINGLE_EXPERT_TASKS = ("ti2v", "s2v", "animate")


def split_flags(arguments: Sequence[str]) -> tuple[dict[str, Any], list[str]]:
    """``(options for enabled, the script's own arguments)``.

    Raises:
        OptionError: contradicting flags, no flag at all, or a half-frame flag with a task that has no expert switch.
    """
    arguments = list(arguments)
    if arguments[:1] == ["--"]:
        del arguments[0]
    parser = argparse.ArgumentParser(prog="halfframe run", add_help=False, allow_abbrev=False)
    parser.add_argument("--enable_half_frame_generation", action="store_true")
    parser.add_argument("--enable_improved_frame_completion", action="store_true")
    parser.add_argument("--half_frame_strategy")
    parser.add_argument("--cfg_truncate_steps", type=int, default=0)
    parser.add_argument("--cfg_truncate_high_noise_steps", type=int, default=0)
    parser.add_argument("--cfg_every", type=int, default=1)
    parser.add_argument("--half_frame_preload", action="store_true")
    parser.add_argument("--half_frame_preset")
    flags, rest = parser.parse_known_args(arguments)

    strategy: str | None = None
    strategy_options: dict[str, Any] = {}
    if flags.half_frame_strategy is not None:
        strategy, strategy_options = parse_strategy(flags.half_frame_strategy)
        others = flags.enable_half_frame_generation or flags.enable_improved_frame_completion or flags.half_frame_preset
        if strategy is None and (others or strategy_options):
            raise OptionError(
                f"--half_frame_strategy {flags.half_frame_strategy} computes every frame: it goes with no option and "
                "no other half-frame flag; leave one of them out."
            )
    if flags.enable_improved_frame_completion:
        if strategy not in (None, "previous-odd"):
            raise OptionError(
                "--enable_improved_frame_completion is the strategy previous-odd, but --half_frame_strategy "
                f"{strategy} was given as well; leave one of them out."
            )
        strategy = "previous-odd"
    elif flags.enable_half_frame_generation and strategy is None and flags.half_frame_preset is None:
        strategy = "self-duplicate"
    if flags.half_frame_preset is not None:
        if strategy is not None:
            refuse_two_strategies(flags.half_frame_preset, f"another flag ({strategy})")
        strategy = find_preset(flags.half_frame_preset).strategy
    truncates = flags.cfg_truncate_steps or flags.cfg_truncate_high_noise_steps or flags.cfg_every != 1
    if strategy is None and not truncates and not flags.half_frame_preload:
        raise OptionError(
            "no flag of halfframe's was given, so the script would run as it is; add --enable_half_frame_generation, "
            "--half_frame_strategy NAME, --half_frame_preset NAME, --cfg_truncate_steps N, --cfg_every N or "
            "--half_frame_preload."
        )
    task = _task(rest)
    if (strategy is not None or flags.half_frame_preload) and task.startswith(_SINGLE_EXPERT_TASKS):
        raise OptionError(
            f"--task {task} has no expert switch, so its frames cannot be halved nor an expert preloaded; use t2v-A14B "
            "or i2v-A14B, or leave out the half-frame flags."
        )
    chosen = {"strategy": strategy} if flags.half_frame_preset is None else {"preset": flags.half_frame_preset}
    options = {
        **chosen,
        "cfg_truncate_steps": flags.cfg_truncate_steps,
        "cfg_truncate_high_noise_steps": flags.cfg_truncate_high_noise_steps,
        "cfg_every": flags.cfg_every,
        "preload": flags.half_frame_preload,
        **strategy_options,
    }
    return options, rest


def refuse_two_strategies(preset: str, other: str) -> NoReturn:
    """Fail because a strategy is named by ``--half_frame_preset``, and by `other` too."""
    raise OptionError(f"--half_frame_preset {preset} names a strategy, and so does {other}; leave one of them out.")


def _task(arguments: Sequence[str]) -> str:
    """The script's ``--task``; upstream's default is t2v-A14B."""
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    parser.add_argument("--task", default="t2v-A14B")
    task: str = parser.parse_known_args(arguments)[0].task
    return task
