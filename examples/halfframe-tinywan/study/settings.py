"""What is studied: models at a number of steps, and what a run of them costs at the sizes of A14B."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from halfframe_tinywan.models import (
    BOUNDARY,
    GUIDANCE,
    I2V_BOUNDARY,
    I2V_GUIDANCE,
    I2V_SHIFT,
    LORA_SHIFT,
    LORA_STEPS,
    SHIFT,
)

import halfframe

__all__ = ["CLIPS", "FIRST_SEED", "SETTINGS", "TUNING_CLIPS", "Item", "Setting", "cost_of"]

FIRST_SEED = 1_000_000
"""Seeds of held-out clips begin here; training draws its worlds below."""
CLIPS = 96
"""Clips that judge."""
TUNING_CLIPS = 8
"""Clips that recipes are tuned on and caches calibrated on; they come after those that judge."""


@dataclass(frozen=True)
class Setting:
    """A model and a number of steps; its plain run is what everything else is measured against.

    Attributes:
        name: as in the tables.
        model: ``"t2v"``, ``"lora"`` or ``"i2v"``.
        steps: of the plain run.
        shift: of the schedule.
        boundary: between the experts, 0..1.
        guidance: scales of the low-noise and of the high-noise expert; (1, 1) makes one pass a step.
    """

    name: str
    model: str
    steps: int
    shift: float
    boundary: float
    guidance: tuple[float, float]

    @property
    def guided(self) -> bool:
        """Whether a step has an unconditional pass."""
        return max(self.guidance) > 1

    @property
    def passes(self) -> int:
        """Forward passes of a full step."""
        return 2 if self.guided else 1


SETTINGS = {
    setting.name: setting
    for setting in (
        Setting("t2v-20", "t2v", 20, SHIFT, BOUNDARY, GUIDANCE),
        Setting("t2v-8", "t2v", 8, SHIFT, BOUNDARY, GUIDANCE),
        Setting("lora-4", "lora", LORA_STEPS, LORA_SHIFT, BOUNDARY, (1.0, 1.0)),
        Setting("i2v-20", "i2v", 20, I2V_SHIFT, I2V_BOUNDARY, I2V_GUIDANCE),
        Setting("i2v-8", "i2v", 8, I2V_SHIFT, I2V_BOUNDARY, I2V_GUIDANCE),
    )
}


@dataclass(frozen=True)
class Item:
    """One piece of work, whose result is one line of ``results.jsonl``.

    Attributes:
        part: ``"fewer steps"``, ``"strategy"``, ``"cache"``, ...
        setting: what it is measured on.
        label: names it within its part.
        rank: those of lower rank go first.
        seconds: how long it takes on a GPU that four processes share, roughly.
        work: makes the result.
        options: for `work`.
        needs: ids of items that must be done before.
    """

    part: str
    setting: Setting
    label: str
    rank: float
    seconds: float
    work: Callable[[Any, Item], dict[str, Any]]
    options: dict[str, Any] = field(default_factory=dict)
    needs: tuple[str, ...] = ()

    @property
    def id(self) -> str:
        """Names it among all."""
        return f"{self.part} / {self.setting.name} / {self.label}"


def run_seconds(setting: Setting, steps: float) -> float:
    """Wall time to make and judge 96 clips with so many full steps, on a GPU that four processes share."""
    return 6.0 + 0.13 * setting.passes * steps


def cost_of(
    setting: Setting,
    strategy: Any = None,
    guidance: halfframe.Guidance | None = None,
    steps: int | None = None,
) -> float:
    """Cost in full steps at A14B, 81 frames of 1280x720, by the cost model of `halfframe.plan`."""
    count = setting.steps if steps is None else steps
    without, run = halfframe.plan(
        sampling_steps=count,
        shift=setting.shift,
        boundary=setting.boundary,
        guided=setting.guided,
        strategy=strategy,
        guidance=guidance,
    ).seconds
    return count * run / without


def cost_of_moves(setting: Setting, moves: Sequence[str]) -> float:
    """`cost_of` a recipe of these moves."""
    return cost_of(setting, halfframe.Recipe(tuple(moves)), steps=len(moves))
