"""Runs that begin where they matter: the steps before are replayed from what a plain run computed."""

from __future__ import annotations

import warnings
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
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

__all__ = ["Record", "Replay", "final_latents", "final_latents_of", "shown_at"]


@dataclass(slots=True)
class Record:
    """What a run computed.

    Attributes:
        velocities: for each step those of its forward passes, ``(..., F, H, W)``, on the CPU.
        shown: the x0 of each step after guidance, ``(..., F, H, W)``, float32, on the CPU.
        steps: the steps, by index.
        seconds: of each forward pass, by the number of latent frames that the expert was given.
    """

    velocities: dict[int, list[Tensor]] = field(default_factory=lambda: defaultdict(list))
    shown: dict[int, Tensor] = field(default_factory=dict)
    steps: dict[int, Step] = field(default_factory=dict)
    seconds: dict[int, list[float]] = field(default_factory=lambda: defaultdict(list))

    def products(self) -> tuple[list[list[float]], list[list[float]]]:
        """Inner products of what every two steps show, and of their guidance differences; see `tuning.fits.Fits`."""
        order = sorted(self.shown)
        pairs = [self.velocities[index] for index in order]
        guided = all(len(passes) > 1 for passes in pairs)
        differences = [passes[0].float() - passes[1].float() for passes in pairs] if guided else []
        return _products([self.shown[index] for index in order]), _products(differences)


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

    def accept(self, steps: Sequence[Step]) -> None:
        """As the recipe."""
        self._recipe.accept(steps)

    def move(self, step: Step) -> Move:
        """What the plain run computed, then the recipe's move."""
        if self._record is None or step.index >= self._start:
            return self._recipe.move(step)
        return Given(tuple(self._record.velocities[step.index]))

    def at(self, step: Step) -> GuidanceRule:
        """The recipe's rule; both passes are replayed."""
        return "both" if step.index < self._start else self._recipe.at(step)


class _Finished(BaseException):
    """All that was wanted is known: ends the host's call."""

    def __init__(self, found: Tensor) -> None:
        self.found = found


class _Observer:
    """A plugin that keeps what a run computes, and ends it at its last step, or at step `last`."""

    def __init__(self, keeps: bool, last: int | None = None) -> None:
        self.record = Record()
        self._keeps = keeps
        self._last = last

    @hookimpl
    def halfframe_expert_call(self, call: ExpertCall) -> None:
        """Keep the velocity and the time."""
        self.record.steps[call.step.index] = call.step
        self.record.seconds[call.latents.shape[TIME_DIM]].append(call.seconds or 0.0)
        if self._keeps:
            self.record.velocities[call.step.index].append(call.prediction.detach().to("cpu", copy=True))

    @hookimpl
    def halfframe_step(self, step: Step, latents: Tensor, velocity: Tensor) -> None:
        """Keep what the step shows; end the run there if nothing else is wanted."""
        if not self._keeps and step.index != self._last:
            return
        shown = (latents.float() - step.sigma * velocity.float()).detach().to("cpu", copy=True)
        if step.index == self._last:
            raise _Finished(shown)
        self.record.shown[step.index] = shown

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


def shown_at(
    pipe: Any, call: Callable[[], Any], moves: Sequence[str], record: Record, index: int
) -> tuple[Tensor, Record]:
    """The x0 of step `index` of a run of `moves`, after guidance, and what was computed; the steps before are replayed.

    Raises:
        HalfframeError: the call did not run the pipeline that far.
    """
    return _observed(pipe, call, Replay(Recipe(tuple(moves)), record, index), _Observer(False, index))


def final_latents_of(
    pipe: Any, call: Callable[[], Any], strategy: StrategyLike, *, keeps: bool = False
) -> tuple[Tensor, Record]:
    """The final latents of a run with any strategy, and what it computed; velocities and x0 only if it `keeps` them.

    Raises:
        HalfframeError: the call did not run the pipeline to its last step.
    """
    return _observed(pipe, call, strategy, _Observer(keeps))


def _observed(pipe: Any, call: Callable[[], Any], strategy: StrategyLike, observer: _Observer) -> tuple[Tensor, Record]:
    try:
        with enabled(pipe, strategy, measure=True, plugins=[observer]), warnings.catch_warnings():
            warnings.simplefilter("ignore", HalfframeWarning)
            call()
    except _Finished as finished:
        return finished.found, observer.record
    raise HalfframeError(
        f"a run of {type(pipe).__name__} ended without its last step; needed: a call that runs the pipeline that is "
        "tuned, with the number of steps that it is asked for."
    )


def _products(tensors: Sequence[Tensor]) -> list[list[float]]:
    if not tensors:
        return []
    flat = torch.stack([tensor.flatten() for tensor in tensors]).double()
    return [[float(value) for value in row] for row in flat @ flat.T]
