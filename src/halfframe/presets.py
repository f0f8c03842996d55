"""Named points between likeness to the full run and speed, from what the study found (examples/tinywan/STUDY.md)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, get_args

from halfframe.errors import OptionError

__all__ = ["PRESETS", "Preset", "PresetName", "find_preset"]

PresetName = Literal["faithful", "balanced", "fast"]


@dataclass(frozen=True, slots=True)
class Preset:
    """A strategy, its options, and how guidance is truncated where the user says nothing of guidance.

    Attributes:
        strategy: an installed strategy's name.
        options: its options.
        guidance: the first two arguments of `halfframe.guidance.GuidanceTruncation`.
    """

    strategy: str
    options: Mapping[str, Any] = field(default_factory=dict)
    guidance: tuple[int, int] = (0, 0)


PRESETS: Mapping[PresetName, Preset] = {
    "faithful": Preset("merge", {"stride": 3, "until": 1}),
    "balanced": Preset("merge"),
    "fast": Preset("merge", guidance=(5, 3)),
}


def find_preset(name: object) -> Preset:
    """The preset of that name.

    Raises:
        OptionError: there is none.
    """
    for known in get_args(PresetName):
        if name == known:
            return PRESETS[known]
    raise OptionError(f"preset={name!r} is unknown; needed: one of {', '.join(map(repr, PRESETS))}.")
