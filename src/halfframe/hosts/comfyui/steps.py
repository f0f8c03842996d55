"""The steps of one sampler's run, told from its sigmas alone; a run is one expert's part of a schedule."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

from torch import Tensor

from halfframe.errors import StrategyError
from halfframe.sampling.schedule import steps_of
from halfframe.sampling.strategy import Allocation, Expert, Move, Step, Strategy
from halfframe.strategies.recipe import Recipe

__all__ = ["HIGH_NOISE", "Table", "Within", "experts_of", "placed_in"]

HIGH_NOISE = 0.85
"""Sigma down to which a step counts as high-noise: workflows that split by step call that expert down to 0.859."""
HIGH_NOISE_START = 0.9
"""A run that starts below is taken for the low-noise expert's, whose first step can lie above `HIGH_NOISE`."""
_ROUNDING = 1 + 1e-4
"""ComfyUI's tables of sigmas are float32, and its percentages are not."""


@dataclass(frozen=True, slots=True)
class Table:
    """Sigmas of a run, falling, one more than steps."""

    sigmas: tuple[float, ...]

    @property
    def end(self) -> float:
        """Sigma of what the run hands on; 0 where it is the last of the schedule."""
        return self.sigmas[-1]

    def index(self, sigma: float) -> int:
        """The step that an evaluation at `sigma` belongs to.

        Second-order samplers evaluate between two entries or at the next one, and UniPC's sigmas are rounded.
        """
        for index, (sigma_next, following) in enumerate(zip(self.sigmas, self.sigmas[1:], strict=False)):
            if sigma > following + (sigma_next - following) / 4:
                return index
        return len(self.sigmas) - 2


def experts_of(sigmas: Sequence[float], expert: Expert) -> list[Expert]:
    """Which expert's steps those at `sigmas` are, in a run of the model that serves as `expert`."""
    high = expert == "high" and sigmas[0] >= HIGH_NOISE_START
    return ["high" if high and sigma >= HIGH_NOISE else "low" for sigma in sigmas]


def run_steps(table: Table, expert: Expert, like: Step) -> list[Step]:
    """The steps of a run over `table`."""
    sigmas = table.sigmas[:-1]
    return steps_of([1000 * sigma for sigma in sigmas], sigmas, experts_of(sigmas, expert), like)


def placed_in(recipe: Recipe, steps: Sequence[Step], expert: Expert) -> list[Step]:
    """The steps of a run of `expert` as those of the whole schedule that `recipe` is for.

    Raises:
        StrategyError: the run has another number of steps than the recipe has for that expert.
    """
    total, high = len(recipe.moves), recipe.high_noise_steps
    if high is None:
        raise StrategyError(
            'the recipe does not say how many of its steps are high-noise ("high_noise_steps"), and a sampler here '
            "sees one expert's steps only; add that number to the recipe."
        )
    expected, offset = (high, 0) if expert == "high" else (total - high, high)
    if len(steps) != expected:
        raise StrategyError(
            f"the recipe has {expected} steps of {total} for the {expert}-noise model, but its sampler makes "
            f"{len(steps)}; set steps to {total} and split at step {high} in both samplers."
        )
    return [
        replace(
            step,
            index=offset + index,
            num_steps=total,
            expert=expert,
            expert_index=index,
            expert_steps=expected,
        )
        for index, step in enumerate(steps)
    ]


class Within(Strategy):
    """A strategy between two noise levels; all frames are computed outside.

    Args:
        inner: the strategy.
        start: sigma from which on it acts, down to
        end: this one, which is out already.
    """

    def __init__(self, inner: Strategy, start: float, end: float) -> None:
        self.name = inner.name
        self._inner = inner
        self._start, self._end = start, end

    def __str__(self) -> str:
        return f"{self._inner} at sigma {self._start:.3g} to {self._end:.3g}"

    def allocate(self, allocation: Allocation) -> Tensor:
        """As the strategy."""
        return self._inner.allocate(allocation)

    def accept(self, steps: Sequence[Step]) -> None:
        """As the strategy."""
        self._inner.accept(steps)

    def move(self, step: Step) -> Move:
        """As the strategy, between the two."""
        inside = self._end * _ROUNDING < step.sigma <= self._start * _ROUNDING
        return self._inner.move(step) if inside else None

    def at_switch(self, latents: Tensor) -> Tensor:
        """As the strategy."""
        return self._inner.at_switch(latents)


def within(strategy: Strategy, model_sampling: object, start_percent: float, end_percent: float) -> Strategy:
    """`strategy` between two percentages of the schedule, as ComfyUI's own nodes count them."""
    if (start_percent, end_percent) == (0.0, 1.0):
        return strategy
    sigma_at = model_sampling.percent_to_sigma  # type: ignore[attr-defined]
    start = math.inf if start_percent <= 0 else float(sigma_at(start_percent))
    end = -1.0 if end_percent >= 1 else float(sigma_at(end_percent))
    return Within(strategy, start, end)
