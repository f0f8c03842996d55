"""Which moves to make: the cheapest sum of errors under a budget, found by dynamic programming.

The errors of single moves, as mean squares of the final latents, add up where they are few and independent. Where they
do not, recipes are measured, and the search goes on around the best of them.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from halfframe.strategies.recipe import needs, reuses

__all__ = ["MoveTable", "best_moves", "measurable", "parts_of"]

_BUCKETS = 50
"""Into how many parts a full step is divided when costs are added up."""


def parts_of(move: str) -> tuple[str, ...]:
    """The moves that are measured alone for `move`: ``merge:2+cond`` -> ``merge:2`` and ``full+cond``."""
    base, plus, rule = move.partition("+")
    return (move,) if not plus or base == "full" else (base, f"full+{rule}")


def measurable(index: int, part: str, high: int) -> bool:
    """Whether `part` alone can be made at step `index`: a reuse needs computed steps before it, a guidance difference
    one of the same expert, whose first steps are 0 and `high`.
    """
    return index >= needs(part) and (index not in (0, high) or part != "full+delta")


@dataclass(frozen=True, slots=True)
class MoveTable:
    """What single moves cost and spoil, in a schedule of one length.

    Attributes:
        errors: for each step, the mean square error of the final latents that a move alone causes.
        costs: of the moves, in full steps.
        high: how many of the steps are the high-noise expert's.
        base: mean square distance of this schedule's plain run from the plain run of the schedule asked for.
    """

    errors: Sequence[Mapping[str, float]]
    costs: Mapping[str, float]
    high: int
    base: float = 0.0

    @property
    def steps(self) -> int:
        """Steps of the schedule."""
        return len(self.errors)

    def cost(self, moves: Sequence[str]) -> float:
        """In full steps."""
        return sum(self.costs[move] for move in moves)

    def error(self, moves: Sequence[str]) -> float:
        """Predicted mean square error, if errors add up."""
        return self.base + sum(self.error_at(index, move) for index, move in enumerate(moves))

    def error_at(self, index: int, move: str) -> float:
        """Of one move; infinite where it was not measured."""
        if move == "full":
            return 0.0
        return sum(self.errors[index].get(part, math.inf) for part in parts_of(move))


def best_moves(
    table: MoveTable, budget: float, forbidden: frozenset[tuple[int, str]] = frozenset()
) -> tuple[str, ...] | None:
    """The moves of least predicted error that cost at most `budget` full steps; None if there are none.

    No two reuses follow each other, the first step is computed, and ``+delta`` comes after a step of the same expert
    that computes both passes.

    Args:
        table: errors and costs.
        budget: in full steps.
        forbidden: pairs of step and move that must not be made.
    """
    limit = math.floor(budget * _BUCKETS + 1e-6)
    # (cost so far, last move was a reuse, this expert has a guidance difference) -> (error, moves)
    states: dict[tuple[int, bool, bool], tuple[float, tuple[str, ...]]] = {(0, True, False): (0.0, ())}
    for index in range(table.steps):
        following: dict[tuple[int, bool, bool], tuple[float, tuple[str, ...]]] = {}
        for (spent, reused, known), (error, moves) in states.items():
            known = known and index != table.high
            for move, price in table.costs.items():
                free = reuses(move)
                total = spent + math.ceil(price * _BUCKETS - 1e-6)
                if total > limit or (index, move) in forbidden or (free and reused):
                    continue
                if move.endswith("+delta") and not known:
                    continue
                sum_ = error + table.error_at(index, move)
                key = (total, free, known or not (free or "+" in move))
                if sum_ < following.get(key, (math.inf, ()))[0]:
                    following[key] = (sum_, (*moves, move))
        states = following
    return min(states.values(), default=(0.0, None))[1]
