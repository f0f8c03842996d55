"""Errors of single moves: every move at every step of every clip, from the stored state before that step."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from torch import Tensor

from halfframe.compare.progress import Progress
from halfframe.plugins.strategies import resolve_strategy
from halfframe.report.cost import H200, ExpertShape
from halfframe.strategies.recipe import Recipe, reuses
from halfframe.tuning.log import Log
from halfframe.tuning.replay import Record, final_latents, final_latents_of
from halfframe.tuning.result import Candidate
from halfframe.tuning.search import MoveTable, measurable, parts_of

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
    _plain: dict[tuple[int, int], tuple[Tensor, Record]] = field(default_factory=dict)

    def plain(self, case: int, steps: int) -> tuple[Tensor, Record]:
        """Final latents of a plain run, and what it computed; made once. Only one schedule's records are kept."""
        key = (case, steps)
        if key not in self._plain:
            for old, (latents, record) in self._plain.items():
                if old[1] not in (steps, self.steps):
                    self._plain[old] = (latents, Record(steps=record.steps))
            latents, record = final_latents(self.pipe, lambda: self.call(case, steps), ["full"] * steps)
            self._time(record)
            self._plain[key] = (latents, record)
        return self._plain[key]

    def passes(self) -> int:
        """Forward passes of a step."""
        return 2 if self.guided() else 1

    def guided(self) -> bool:
        """Whether steps have an unconditional pass."""
        return any(len(passes) > 1 for passes in self.plain(0, self.steps)[1].velocities.values())

    def error(self, case: int, moves: Sequence[str], start: int = 0) -> float:
        """Mean square distance of a run of `moves` from the plain run of the schedule that was asked for."""
        steps = len(moves)
        target = self.plain(case, self.steps)[0]
        own, record = (target, None) if not start and steps != self.steps else self.plain(case, steps)
        if all(move == "full" for move in moves):
            return mean_square(self.plain(case, steps)[0], target)
        latents, computed = final_latents(
            self.pipe, lambda: self.call(case, steps), moves, record if start else None, start
        )
        self._time(computed)
        return mean_square(latents, own if start else target)

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
            target = self.plain(case, self.steps)[0]
            latents, record = final_latents_of(self.pipe, lambda: self.call(case, steps), name)
            self._time(record)
            passes.update({count: len(seconds) for count, seconds in record.seconds.items()})
            return mean_square(latents, target)

        def cost() -> float:
            if not passes:  # the log was cut off before this
                error(0)
            total = self.plain(0, self.steps)[0].shape[-3]
            spent = sum(made * self._seconds(count, total) for count, made in passes.items())
            return spent / (self.passes() * self._seconds(total, total))

        errors = [self.log.get(f"{key} #{case}", partial(error, case)) for case in range(self.cases)]
        return Candidate(name, steps, self.log.get(f"cost {key}", cost), statistics.fmean(errors), tuple(errors))

    def table(self, steps: int, moves: Sequence[str]) -> MoveTable:
        """Measure `moves` at every step of a schedule of `steps`, one at a time; their costs are not in it yet."""
        parts = [part for part in dict.fromkeys(part for move in moves for part in parts_of(move)) if part != "full"]
        errors: list[dict[str, float]] = [{} for _ in range(steps)]
        high = self.high(steps)
        todo = [(index, part) for index in range(steps) for part in parts if measurable(index, part, high)]
        for done, (index, part) in enumerate(todo, 1):
            alone = ["full"] * steps
            alone[index] = part
            name = f"move {steps} {index} {part}"
            names = [f"{name} #{case}" for case in range(self.cases)]
            self.progress.add(-(steps - index) * self.passes() * sum(known in self.log for known in names))
            found = [self.log.get(known, partial(self.error, case, alone, index)) for case, known in enumerate(names)]
            errors[index][part] = statistics.fmean(found)
            self.progress.say(f"{steps} steps: {done} of {len(todo)} moves measured")
        base = statistics.fmean(self.measured(["full"] * steps)) if steps != self.steps else 0.0
        return MoveTable(errors, {}, high, base)

    def high(self, steps: int) -> int:
        """How many of `steps` steps are the high-noise expert's."""

        def count() -> int:
            return sum(step.expert == "high" for step in self.plain(0, steps)[1].steps.values())

        return int(self.log.get(f"high {steps}", count))

    def costs(self, moves: Sequence[str]) -> dict[str, float]:
        """Cost of each move in full steps, by the median time of passes over as many frames so far."""
        return {move: self.log.get(f"cost {move}", partial(self._cost, move)) for move in moves}

    def _cost(self, move: str) -> float:
        total = self.plain(0, self.steps)[0].shape[-3]
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
