"""Runs that begin where they matter: the steps before are replayed from what a plain run computed."""

from __future__ import annotations

import warnings
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

from halfframe.enabled import enabled
from halfframe.errors import HalfframeError, HalfframeWarning
from halfframe.plugins.spec import hookimpl
from halfframe.plugins.strategies import StrategyLike
from halfframe.sampling.events import ExpertCall
from halfframe.sampling.frames import TIME_DIM
from halfframe.sampling.guidance import GuidanceRule
from halfframe.sampling.strategy import Given, Move, Step, Strategy
from halfframe.strategies.recipe import Recipe

__all__ = ["Record", "Replay", "final_latents", "final_latents_of"]


@dataclass(slots=True)
class Record:
    """What a run computed.

    Attributes:
        velocities: for each step those of its forward passes, ``(..., F, H, W)``, on the CPU.
        steps: the steps, by index.
        seconds: of each forward pass, by the number of latent frames that the expert was given.
    """

    velocities: dict[int, list[Tensor]] = field(default_factory=lambda: defaultdict(list))
    steps: dict[int, Step] = field(default_factory=dict)
    seconds: dict[int, list[float]] = field(default_factory=lambda: defaultdict(list))


class Replay(Strategy):
    """A recipe whose first steps are replayed from a plain run of the same clip, without a forward pass.

    Args:
        recipe: for the steps from `start` on.
        record: of the plain run.
        start: the first step that is computed.
    """

    name = "replay"

    def __init__(self, recipe: Recipe, record: Record | None = None, start: int = 0) -> None:
        self._recipe = recipe
        self._record = record
        self._start = start

    def __bool__(self) -> bool:
        return bool(self._recipe)

    def move(self, step: Step) -> Move:
        """What the plain run computed, then the recipe's move."""
        move = self._recipe.move(step)  # also where it is not used: it refuses a schedule of other length
        if self._record is None or step.index >= self._start:
            return move
        return Given(tuple(self._record.velocities[step.index]))

    def at(self, step: Step) -> GuidanceRule:
        """The recipe's rule; both passes are replayed."""
        return "both" if step.index < self._start else self._recipe.at(step)


class _Finished(BaseException):
    """The latents are final: ends the host's call before it decodes them."""

    def __init__(self, latents: Tensor) -> None:
        self.latents = latents


class _Observer:
    """A plugin that keeps what a run computes, and ends it at its last step."""

    def __init__(self, keeps: bool) -> None:
        self.record = Record()
        self._keeps = keeps

    @hookimpl
    def halfframe_expert_call(self, call: ExpertCall) -> None:
        """Keep the velocity and the time."""
        self.record.steps[call.step.index] = call.step
        self.record.seconds[call.latents.shape[TIME_DIM]].append(call.seconds or 0.0)
        if self._keeps:
            self.record.velocities[call.step.index].append(call.prediction.detach().to("cpu", copy=True))

    @hookimpl(trylast=True)
    def halfframe_latents(self, latents: Tensor) -> None:
        """End the run."""
        raise _Finished(latents.detach().to("cpu", copy=True).float())


def final_latents(
    pipe: Any, call: Callable[[], Any], moves: Sequence[str], record: Record | None = None, start: int = 0
) -> tuple[Tensor, Record]:
    """The final latents of a run of `moves`, and what it computed; nothing is decoded.

    Args:
        pipe: the pipeline.
        call: calls it.
        moves: of a recipe, one for each step.
        record: of the plain run of the same clip, replayed up to `start`; without one, all is computed, and kept.
        start: the first step that is computed.

    Raises:
        HalfframeError: the call did not run the pipeline to its last step.
    """
    return final_latents_of(pipe, call, Replay(Recipe(tuple(moves)), record, start), keeps=record is None)


def final_latents_of(
    pipe: Any, call: Callable[[], Any], strategy: StrategyLike, *, keeps: bool = False
) -> tuple[Tensor, Record]:
    """The final latents of a run with any strategy, and what it computed; velocities only if it `keeps` them.

    Raises:
        HalfframeError: the call did not run the pipeline to its last step.
    """
    observer = _Observer(keeps)
    try:
        with enabled(pipe, strategy, measure=True, plugins=[observer]), warnings.catch_warnings():
            warnings.simplefilter("ignore", HalfframeWarning)
            call()
    except _Finished as finished:
        return finished.latents, observer.record
    raise HalfframeError(
        f"a run of {type(pipe).__name__} ended without its last step; needed: a call that runs the pipeline that is "
        "tuned, with the number of steps that it is asked for."
    )
