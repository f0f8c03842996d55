"""What is measured: errors of single moves, from the stored state before each, and of whole recipes."""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any, TypeVar

import numpy as np
import torch
from torch import Tensor

from halfframe.compare.progress import Progress
from halfframe.errors import HalfframeError, OptionError
from halfframe.plugins.strategies import resolve_strategy
from halfframe.sampling.frames import TIME_DIM
from halfframe.strategies.recipe import Recipe, reuses
from halfframe.tuning.fits import Fits
from halfframe.tuning.log import Log
from halfframe.tuning.replay import Record, final_latents, final_latents_of, shown_at
from halfframe.tuning.result import Candidate
from halfframe.tuning.search import Effect, MoveTable, measurable, parts_of

__all__ = ["Bench", "mean_square"]

_T = TypeVar("_T")
Call = Callable[[int, int], Any]
"""``(case, steps)``: calls the pipeline for one clip, or one batch of clips."""


_TIMED = 3
"""Passes that are timed at least before a move has a cost."""
_LOOKED_AT = 64
"""Values of a plain run's latents that a log keeps, to know the clip again."""
_OTHER = 0.25
"""Of their spread: latents that differ by more are of another clip. Another kind of GPU makes less of a difference."""


def mean_square(a: Tensor, b: Tensor) -> float:
    """Mean square distance; infinite if either has values that are not finite."""
    found = float((a - b).square().mean())
    return found if math.isfinite(found) else math.inf


@dataclass(slots=True)
class Bench:
    """The clips that a search measures on, and all that was measured.

    Attributes:
        pipe: the pipeline.
        call: calls it.
        cases: how many clips, or batches of clips, there are.
        steps: of the schedule that was asked for.
        log: where results are kept, and read again by a later call.
        progress: is told what goes on; its unit is a forward pass.
        replays: whether runs begin in the midst of plain ones; if not, only the final latents of these are kept.
        seconds: of all forward passes so far, by the number of latent frames that the expert was given.
    """

    pipe: Any
    call: Call
    cases: int
    steps: int
    log: Log
    progress: Progress
    replays: bool = True
    seconds: dict[int, list[float]] = field(default_factory=dict)
    _given: dict[str, int] = field(default_factory=dict, init=False)
    _latents: dict[tuple[int, int], Tensor] = field(default_factory=dict, init=False)
    _records: dict[tuple[int, int], Record] = field(default_factory=dict, init=False)

    def plain(self, case: int, steps: int) -> Tensor:
        """Final latents of a plain run; made once."""
        if (case, steps) not in self._latents:
            self.record(case, steps)
        return self._latents[case, steps]

    def record(self, case: int, steps: int) -> Record:
        """What a plain run computed. Only those of one other schedule are kept beside the one that was asked for."""
        key = (case, steps)
        if key not in self._records:
            for old in [old for old in self._records if old[1] not in (steps, self.steps)]:
                del self._records[old]
            latents, record = final_latents(self.pipe, lambda: self.call(case, steps), ["full"] * steps)
            self._time(record)
            self._require_known(case, steps, latents)
            self._latents[key] = latents
            self._records[key] = record if self.replays else Record(steps=record.steps, seconds=record.seconds)
        return self._records[key]

    def require_same_clip(self) -> None:
        """See that the same case gives the same clip; this takes no forward pass.

        Raises:
            OptionError: it does not.
        """
        full, record = ["full"] * self.steps, self.record(0, self.steps)
        again, _ = final_latents(self.pipe, lambda: self.call(0, self.steps), full, record, self.steps)
        if mean_square(again, self.plain(0, self.steps)) > 1e-6 * float(again.square().mean()):
            raise OptionError(
                "two calls for the first clip began with different noise; needed: a call that gives the same clip for "
                "the same case, with a seed or a new generator of its own each time."
            )

    def _require_known(self, case: int, steps: int, latents: Tensor) -> None:
        """Refuse what no error can be measured against, and a log of other clips."""
        if not latents.isfinite().all():
            raise HalfframeError(
                f"the plain run of clip {case + 1} with {steps} steps ends in latents that are NaN or infinite; "
                "needed: a pipeline that works without halfframe. Look at its dtype and its weights."
            )
        if steps != self.steps:
            return
        some = latents.flatten()[:: max(1, latents.numel() // _LOOKED_AT)][:_LOOKED_AT]
        known = torch.tensor(self.log.get(f"plain #{case}", some.tolist))
        apart = float((known - some).square().mean().sqrt() / some.std().clamp(min=1e-9)) if len(some) > 1 else 0.0
        if apart > _OTHER:
            raise OptionError(
                f"the log in the output folder was measured with another clip {case + 1}: the latents of its plain run "
                f"differ by {apart:.2f} times their spread. Call with the weights, prompts, seeds and arguments of the "
                "log, or give another output folder."
            )

    def passes(self) -> int:
        """Forward passes of a step."""
        return 2 if self.guided() else 1

    def guided(self) -> bool:
        """Whether steps have an unconditional pass."""
        record = self.record(0, self.steps)
        return sum(map(len, record.seconds.values())) > len(record.steps)

    def error(self, case: int, moves: Sequence[str]) -> float:
        """Mean square distance of a run of `moves` from the plain run of the schedule that was asked for."""
        steps = len(moves)
        if all(move == "full" for move in moves):
            latents = self.plain(case, steps)
        else:
            latents, computed = final_latents(self.pipe, lambda: self.call(case, steps), moves)
            self._time(computed)
        return mean_square(latents, self.plain(case, self.steps))

    def alone(self, case: int, moves: Sequence[str], index: int) -> list[float]:
        """`Effect` of the one move at `index`: the steps before are replayed from the plain run of as many steps."""
        steps = len(moves)
        record = self.record(case, steps)
        latents, computed = final_latents(self.pipe, lambda: self.call(case, steps), moves, record, index)
        self._time(computed)
        return [mean_square(latents, self.plain(case, count)) for count in (steps, self.steps)]

    def step_error(self, case: int, moves: Sequence[str], index: int) -> list[float]:
        """Mean square distance of what step `index` shows with `moves` from what it shows in the plain run."""
        steps = len(moves)
        record = self.record(case, steps)
        shown, computed = shown_at(self.pipe, lambda: self.call(case, steps), moves, record, index)
        self._time(computed)
        return [mean_square(shown, record.shown[index])]

    def fits(self, steps: int) -> Fits:
        """What the steps of a schedule show, told from each other, over all clips."""

        def add_up() -> tuple[list[list[float]], list[list[float]]]:
            found = [self.record(case, steps).products() for case in range(self.cases)]
            shown, differences = (np.sum(part, axis=0).tolist() for part in zip(*found, strict=True))
            return shown, differences

        shown, differences = (tuple(map(tuple, rows)) for rows in self.log.get(f"products {steps}", add_up))
        return Fits(shown, differences, self.high(steps), self.cases * self.plain(0, self.steps).numel())

    def measured(self, moves: Sequence[str]) -> list[float]:
        """`error` of a whole recipe, for each case; made once."""
        return self._by_clip("recipe " + " ".join(moves), lambda case: self.error(case, moves))

    def candidate(self, name: str) -> Candidate:
        """Measure a strategy or a recipe as `halfframe.enabled` takes it; made once."""
        strategy = resolve_strategy(name, {})
        recipe = strategy if isinstance(strategy, Recipe) else None
        steps = self.steps if recipe is None else len(recipe.moves)
        key = f"strategy {name}" if recipe is None else f"strategy {' '.join(recipe.moves)}"  # a file may change
        passes: dict[int, int] = {}

        def error(case: int) -> float:
            target = self.plain(case, self.steps)
            latents, record = final_latents_of(self.pipe, lambda: self.call(case, steps), name)
            self._time(record)
            passes.update({count: len(seconds) for count, seconds in record.seconds.items()})
            return mean_square(latents, target)

        def cost() -> float:
            if not passes:  # the log was cut off before this
                error(0)
            spent = sum(made * statistics.median(self.seconds[count]) for count, made in passes.items())
            return spent / (self.passes() * self._seconds("full"))

        errors = self._by_clip(key, error)
        return Candidate(name, steps, self.log.get(f"cost {key}", cost), statistics.fmean(errors), tuple(errors))

    def table(self, steps: int, moves: Sequence[str]) -> MoveTable:
        """Measure `moves` at every step of a schedule of `steps`, one at a time; their costs are not in it yet."""
        rows = []
        for index in range(steps):
            rows.append(self.row(steps, index, moves))
            self.progress.say(f"{steps} steps: moves measured at {index + 1} of them")
        return MoveTable(rows, {}, self.fits(steps), self.base(steps))

    def base(self, steps: int) -> float:
        """Mean square distance between the plain runs of `steps` steps and of those asked for."""
        return statistics.fmean(self.measured(["full"] * steps)) if steps != self.steps else 0.0

    def row(self, steps: int, index: int, moves: Sequence[str]) -> dict[str, Effect]:
        """What the parts of `moves` do, each made alone, at one step.

        Where a reuse is possible, a part that computes some of the frames must show the step better than that: else it
        is dearer and worse, and left out. One step tells.
        """
        fits, found = self.fits(steps), dict[str, Effect]()
        parts = dict.fromkeys(part for move in moves for part in parts_of(move))
        for part in parts:
            if part == "full" or not measurable(index, part, fits.high):
                continue
            frames = not part.startswith(("full", "reuse"))
            alone = ["full"] * steps
            alone[index] = part
            if frames and index and "reuse" in parts:
                [shown] = self._each(f"shown {steps} {index} {part}", self.step_error, alone, index)
                if shown >= fits.fit(index, "reuse", fits.before(index, "reuse")).residual:
                    continue
            weighted = fits.resolved(alone)
            found[part] = Effect(*self._each(f"move {steps} {index} {part}", self.alone, weighted, index))
        return found

    def _each(
        self, name: str, measure: Callable[[int, Sequence[str], int], list[float]], moves: Sequence[str], index: int
    ) -> list[float]:
        """The means over all clips of what is measured of each."""
        found = self._by_clip(name, lambda case: measure(case, moves, index))
        return [statistics.fmean(numbers) for numbers in zip(*found, strict=True)]

    def _by_clip(self, name: str, measure: Callable[[int], _T]) -> list[_T]:
        """What is measured of each clip; made once."""
        return [self.log.get(f"{name} #{case}", partial(measure, case)) for case in range(self.cases)]

    def high(self, steps: int) -> int:
        """How many of `steps` steps are the high-noise expert's."""

        def count() -> int:
            return sum(step.expert == "high" for step in self.record(0, steps).steps.values())

        return int(self.log.get(f"high {steps}", count))

    def sigmas(self, steps: int) -> tuple[float, ...]:
        """Noise levels of a schedule of `steps` steps."""

        def levels() -> list[float]:
            found = self.record(0, steps).steps
            return [round(found[index].sigma, 4) for index in range(steps)]

        return tuple(self.log.get(f"sigmas {steps}", levels))

    def costs(self, moves: Sequence[str]) -> dict[str, float]:
        """Cost of each move in full steps, by the median time of passes over as many frames so far."""
        return {move: self.log.get(f"cost {move}", partial(self._cost, move)) for move in moves}

    def _cost(self, move: str) -> float:
        base, plus, _ = move.partition("+")
        if reuses(base):
            return 0.0
        share = 0.5 if plus else 1.0  # of the two passes of a guided step
        return share * (1.0 if base == "full" else self._seconds(base) / self._seconds("full"))

    def _seconds(self, base: str) -> float:
        """Of a pass with such a move: the median of at least three."""
        if base == "full":
            return statistics.median(self.seconds[self._frames()])
        moves, record = [base, *["full"] * (self.steps - 1)], self.record(0, self.steps)
        while len(self.seconds.get(self._given.get(base, 0), ())) < _TIMED:  # once, unless most was read from a log
            _, computed = shown_at(self.pipe, lambda: self.call(0, self.steps), moves, record, 0)
            self._time(computed)
            self._given[base] = min(computed.seconds)
        return statistics.median(self.seconds[self._given[base]])

    def _frames(self) -> int:
        return self.plain(0, self.steps).shape[TIME_DIM]

    def _time(self, record: Record) -> None:
        self.progress.done(sum(map(len, record.seconds.values())))
        for count, seconds in record.seconds.items():
            self.seconds.setdefault(count, []).extend(seconds)
