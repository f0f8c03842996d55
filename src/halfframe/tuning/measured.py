"""The search that measures: for each budget the recipes that are expected to be best, and what was learnt from them."""

from __future__ import annotations

import itertools
import math
import statistics
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

from halfframe.errors import OptionError
from halfframe.strategies.recipe import Recipe
from halfframe.tuning.result import Measured
from halfframe.tuning.rivals import FewerSteps, most_steps
from halfframe.tuning.search import Expected, MoveTable, expected_best, neighbours
from halfframe.tuning.table import Bench

__all__ = ["Search", "measure"]

_LOOKED_AT = 200
"""How many of a schedule's recipes, the best expected ones within the budget, may be measured next."""


def measure(bench: Bench, moves: Sequence[str], cost: float, predicted: float | None, kind: str = "recipe") -> Measured:
    """Run a recipe on all clips of a bench."""
    errors = bench.measured(moves)
    recipe = Recipe(tuple(moves), bench.high(len(moves)), bench.sigmas(len(moves)))
    return Measured(recipe, cost, predicted, statistics.fmean(errors), tuple(errors), kind)


@dataclass
class _Schedule:
    """One number of steps: what is expected of its recipes, and what was measured."""

    table: MoveTable
    expected: list[Expected]
    ratios: dict[tuple[str, ...], float] = field(default_factory=dict)

    def corrected(self, one: Expected) -> float:
        """What is expected, by as much more or less as was measured of the recipe that is most like it."""
        nearest = min(self.ratios, key=lambda moves: _differing(moves, one.moves), default=None)
        return one.error * (1.0 if nearest is None else self.ratios[nearest])


class Search:
    """Measures recipes for one budget after the other, each time the one that is then expected to be best.

    Args:
        bench: the clips of the search.
        tables: of single moves, one for each number of steps.
        budgets: those that are asked for, in full steps.

    Raises:
        OptionError: nothing costs as little as the smallest budget.
    """

    def __init__(self, bench: Bench, tables: Sequence[MoveTable], budgets: Sequence[float]) -> None:
        self._bench = bench
        self._schedules = [_Schedule(table, expected_best(table, max(budgets))) for table in tables]
        self._measured: dict[tuple[str, ...], Measured] = {}
        costs = [one.cost for schedule in self._schedules for one in schedule.expected]
        if min(costs, default=math.inf) > min(budgets) + 1e-9 and not self._rivals(min(budgets)):
            cheapest = f"the cheapest is {min(costs):.2f}" if costs else "nor as little as any other budget"
            least = f"{min(budgets):.2f} full steps or less"
            raise OptionError(f"no recipe costs {least}, {cheapest}; give a larger budget, or more moves.")

    def best(self, budget: float, runs: int) -> Measured:
        """The best of all that was measured so far and costs at most `budget` full steps.

        Args:
            budget: in full steps.
            runs: so many further recipes are measured first, and as many plain steps as the budget allows.
        """
        for _ in range(runs):
            offers = [(schedule.corrected(one), schedule, one) for schedule, one in self._offers(budget)]
            if not offers:
                break
            self._try(budget, *min(offers, key=lambda offer: offer[0])[1:])
        for rival in self._rivals(budget):
            if rival.moves not in self._measured:
                self._measured[rival.moves] = measure(self._bench, rival.moves, rival.cost, None)
        return min(self._fitting(budget).values(), key=lambda found: found.error)

    def _rivals(self, budget: float) -> Sequence[FewerSteps]:
        return most_steps(budget, self._bench.steps, self._bench.guided())

    def _fitting(self, budget: float) -> dict[tuple[str, ...], Measured]:
        return {moves: found for moves, found in self._measured.items() if found.cost <= budget + 1e-9}

    def _offers(self, budget: float) -> Iterator[tuple[_Schedule, Expected]]:
        """What may be measured next: the best expected of each schedule, and what is like the best measured."""
        fitting = self._fitting(budget)
        best = min(fitting, key=lambda moves: fitting[moves].error, default=())
        for schedule in self._schedules:
            within = (one for one in schedule.expected if one.cost <= budget + 1e-9 and one.moves not in self._measured)
            for one in itertools.islice(within, _LOOKED_AT):
                yield schedule, one
            if len(best) == schedule.table.steps:
                for one in neighbours(schedule.table, best, budget):
                    if one.moves not in self._measured:
                        yield schedule, one

    def _try(self, budget: float, schedule: _Schedule, one: Expected) -> None:
        expected = schedule.corrected(one)
        found = measure(self._bench, schedule.table.fits.resolved(one.moves), one.cost, expected)
        self._measured[one.moves] = found
        if one.error > 0:
            schedule.ratios[one.moves] = found.error / one.error
        shown = " ".join(one.moves)
        self._bench.progress.say(f"budget {budget:.2f}: {shown}: {found.error:.3g}, expected {expected:.3g}")


def _differing(a: Sequence[str], b: Sequence[str]) -> int:
    return sum(one != other for one, other in zip(a, b, strict=True)) if len(a) == len(b) else math.inf  # type: ignore[return-value]
