"""What is measured: errors of single moves, from the stored state before each, and of whole recipes."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import numpy as np
from torch import Tensor

from halfframe.compare.progress import Progress
from halfframe.plugins.strategies import resolve_strategy
from halfframe.report.cost import H200, ExpertShape
from halfframe.strategies.recipe import Recipe, reuses
from halfframe.tuning.fits import Fits
from halfframe.tuning.log import Log
from halfframe.tuning.replay import Record, final_latents, final_latents_of, shown_at
from halfframe.tuning.result import Candidate
from halfframe.tuning.search import MoveTable, Spoilt, measurable, parts_of

__all__ = ["Bench", "mean_square"]

Call = Callable[[int, int], Any]
"""``(case, steps)``: calls the pipeline for one clip, or one batch of clips."""


def mean_square(a: Tensor, b: Tensor) -> float:
    """Mean square distance."""
    return float((a - b).square().mean())


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
    """

    pipe: Any
    call: Call
    cases: int
    steps: int
    log: Log
    progress: Progress
    seconds: dict[int, list[float]] = field(default_factory=dict)
    _latents: dict[tuple[int, int], Tensor] = field(default_factory=dict)
    _records: dict[tuple[int, int], Record] = field(default_factory=dict)

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
            self._latents[key], self._records[key] = latents, record
        return self._records[key]

    def passes(self) -> int:
        """Forward passes of a step."""
        return 2 if self.guided() else 1

    def guided(self) -> bool:
        """Whether steps have an unconditional pass."""
        return any(len(passes) > 1 for passes in self.record(0, self.steps).velocities.values())

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
        """`Spoilt` of the one move at `index`: the steps before are replayed from the plain run of as many steps."""
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
        key = "recipe " + " ".join(moves)
        return [self.log.get(f"{key} #{case}", partial(self.error, case, moves)) for case in range(self.cases)]

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
            total = self.plain(0, self.steps).shape[-3]
            spent = sum(made * self._seconds(count, total) for count, made in passes.items())
            return spent / (self.passes() * self._seconds(total, total))

        errors = [self.log.get(f"{key} #{case}", partial(error, case)) for case in range(self.cases)]
        return Candidate(name, steps, self.log.get(f"cost {key}", cost), statistics.fmean(errors), tuple(errors))

    def table(self, steps: int, moves: Sequence[str]) -> MoveTable:
        """Measure `moves` at every step of a schedule of `steps`, one at a time; their costs are not in it yet."""
        rows = []
        for index in range(steps):
            rows.append(self.row(steps, index, moves))
            self.progress.say(f"{steps} steps: moves measured at {index + 1} of them")
        return MoveTable(rows, {}, self.fits(steps), self.base(steps))

    def base(self, steps: int) -> float:
        """Mean square distance of the plain run of so many steps."""
        return statistics.fmean(self.measured(["full"] * steps)) if steps != self.steps else 0.0

    def row(self, steps: int, index: int, moves: Sequence[str]) -> dict[str, Spoilt]:
        """What the parts of `moves` do, each made alone, at one step.

        Where a reuse is possible, a part that computes some of the frames must show the step better than that: else it
        is dearer and worse, and left out. One step tells.
        """
        fits, found = self.fits(steps), dict[str, Spoilt]()
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
            weighted = MoveTable([{}] * steps, {}, fits).resolved(alone)
            found[part] = Spoilt(*self._each(f"move {steps} {index} {part}", self.alone, weighted, index))
        return found

    def _each(
        self, name: str, measure: Callable[[int, Sequence[str], int], list[float]], moves: Sequence[str], index: int
    ) -> list[float]:
        """The means over all clips of what is measured of each."""
        found = [self.log.get(f"{name} #{case}", partial(measure, case, moves, index)) for case in range(self.cases)]
        return [statistics.fmean(numbers) for numbers in zip(*found, strict=True)]

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
        total = self.plain(0, self.steps).shape[-3]
        base, plus, _ = move.partition("+")
        if reuses(base):
            return 0.0
        count = total if base == "full" else self._frames(base, total)
        share = 0.5 if plus else 1.0  # of the two passes of a guided step
        return share * self._seconds(count, total) / statistics.median(self.seconds[total])

    def _frames(self, base: str, total: int) -> int:
        """Frames that an expert is given for a move like ``merge:3``: the usual number of them."""
        stride = int(base.partition(":")[2])
        return max(1, -(-total // stride))

    def _seconds(self, count: int, total: int) -> float:
        """Of a pass over `count` frames: measured, else by the rates of `halfframe.plan`."""
        known = self.seconds.get(count)
        if known:
            return statistics.median(known)
        shape = ExpertShape(5120, 13824, 40)
        per_frame = 1560
        ratio = shape.seconds(count * per_frame, H200) / shape.seconds(total * per_frame, H200)
        return statistics.median(self.seconds[total]) * ratio

    def _time(self, record: Record) -> None:
        self.progress.done(sum(map(len, record.seconds.values())))
        for count, seconds in record.seconds.items():
            self.seconds.setdefault(count, []).extend(seconds)


def tries(steps: int, moves: Sequence[str], high: int) -> int:
    """Steps that are computed at most to measure a table of single moves."""
    parts = dict.fromkeys(part for move in moves for part in parts_of(move) if part != "full")
    return sum(steps - index for index in range(steps) for part in parts if measurable(index, part, high))
