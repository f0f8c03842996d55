"""Named points between likeness to the full run and speed, from what the study has found so far (examples/tinywan)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, get_args

from halfframe.errors import OptionError

__all__ = ["PRESETS", "Preset", "PresetName", "find_preset"]

PresetName = Literal["faithful", "balanced", "fast"]


@dataclass(frozen=True, slots=True)
class Preset:
    """A strategy and its options.

    Attributes:
        strategy: an installed strategy's name.
        options: its options.
    """

    strategy: str
    options: Mapping[str, Any] = field(default_factory=dict)


PRESETS: Mapping[PresetName, Preset] = {
    "faithful": Preset("interleave", {"full_start": 1, "full_end": 3}),
    "balanced": Preset("interleave"),
    "fast": Preset("interleave", {"until": "end", "full_end": 3}),
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
