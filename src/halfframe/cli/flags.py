"""The source's flags, taken out of a script's command line."""

from __future__ import annotations

import argparse
import difflib
from collections.abc import Sequence
from typing import Any

from halfframe.cli.options import add_guidance, guidance_from
from halfframe.errors import OptionError, did_you_mean

__all__ = ["FLAGS_HELP", "split_flags"]

FLAGS_HELP = """\
flags (all other arguments are the script's own):
  --enable_half_frame_generation          half the latent frames for the high-noise expert (self-duplicate)
  --enable_improved_frame_completion      the same with previous-odd
  --strategy NAME[:OPTIONS]               any installed strategy, interleave:stride=3,full_start=1, or recipe.json
  --cfg_truncate_steps N                  skip the unconditional pass on the last N steps
  --cfg_truncate_high_noise_steps M       and on the last M high-noise steps
  --cfg_every N                           on the other steps, compute it on every N-th of each expert

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
    parser.add_argument("--strategy")
    add_guidance(parser)
    flags, rest = parser.parse_known_args(arguments)
    _refuse_misspelt(rest, list(parser._option_string_actions))

    guidance = guidance_from(flags)
    strategy = _strategy(flags)
    if strategy is None and not guidance:
        raise OptionError(
            "no flag of halfframe's was given, so the script would run as it is; add --enable_half_frame_generation, "
            "--strategy NAME, --cfg_truncate_steps N or --cfg_every N."
        )
    task = _task(rest)
    if strategy is not None and task.startswith(_SINGLE_EXPERT_TASKS):
        raise OptionError(
            f"--task {task} has no expert switch, so no frames can be skipped; use t2v-A14B or "
            "i2v-A14B, or leave out the half-frame flags."
        )
    return {"strategy": strategy, "guidance": guidance}, rest


def _refuse_misspelt(rest: Sequence[str], own: Sequence[str]) -> None:
    """Refuse what looks like a flag of ours: the script would only do so once it has come to its own parser."""
    names = [flag.removeprefix("--") for flag in own]
    for word in rest:
        flag = word.partition("=")[0]
        name = flag.removeprefix("--").replace("-", "_")
        ours = name.startswith(("half_frame", "enable_half_frame", "cfg_truncate"))
        if flag.startswith("--") and (ours or difflib.get_close_matches(name, names, 1, 0.9)):
            raise OptionError(f"{flag} is unknown; halfframe's flags are {', '.join(own)}.{did_you_mean(flag, own)}")


def _strategy(flags: argparse.Namespace) -> str | None:
    """The one strategy that the flags name, as `halfframe.enabled` takes it."""
    named: str | None = flags.strategy
    if named is not None and named.partition(":")[0].strip() == "none":
        if ":" in named or flags.enable_half_frame_generation or flags.enable_improved_frame_completion:
            raise OptionError(
                f"--strategy {named} computes every frame: it goes with no option and no other half-frame flag; leave "
                "one of them out."
            )
        return None
    if flags.enable_improved_frame_completion:
        if named not in (None, "previous-odd"):
            raise OptionError(
                f"--enable_improved_frame_completion is the strategy previous-odd, but --strategy {named} was given "
                "as well; leave one of them out."
            )
        return "previous-odd"
    return named or ("self-duplicate" if flags.enable_half_frame_generation else None)


def _task(arguments: Sequence[str]) -> str:
    """The script's ``--task``; upstream's default is t2v-A14B."""
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    parser.add_argument("--task", default="t2v-A14B")
    task: str = parser.parse_known_args(arguments)[0].task
    return task
