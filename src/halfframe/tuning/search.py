"""Which moves to make: the least error for every cost, expected from errors of single moves.

The errors of single moves add up where they are few and independent. How much a reuse spoils depends on which steps
before it are computed; its error is scaled by what its weights leave unexplained. Where that is not enough, recipes are
measured, and the search goes on around the best of them (`tune`).
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from halfframe.tuning.fits import Fits, Past

__all__ = ["Effect", "Expected", "MoveTable", "expected_best", "measurable", "neighbours", "parts_of"]

_BUCKET = 0.25
"""In full steps: lists of moves whose costs differ by less are compared with each other."""
_WIDTH = 60
"""How many lists of moves are followed up for each bucket of cost."""


def parts_of(move: str) -> tuple[str, ...]:
    """The moves that are measured alone for `move`: ``merge:2+cond`` -> ``merge:2`` and ``full+cond``."""
    base, plus, rule = move.partition("+")
    return (move,) if not plus or base == "full" else (base, f"full+{rule}")


def measurable(index: int, part: str, high: int) -> bool:
    """Whether `part` alone is tried at step `index`.

    A reuse needs a computed step before it, a guidance difference one of the same expert, whose first steps are 0 and
    `high`. Where a difference is known, ``+cond`` is not tried: a difference of weight 0 is the same.
    """
    if part in ("full+delta", "full+cond"):
        return (index in (0, high)) == (part == "full+cond")
    return index > 0 or part != "reuse"


@dataclass(frozen=True, slots=True)
class Effect:
    """What a move alone does to the final latents of a schedule, as mean squares.

    Attributes:
        apart: how far they are then from this schedule's plain run.
        error: how far from the plain run of the schedule asked for; the same, if that is this one.
    """

    apart: float
    error: float

    def along(self, base: float) -> float:
        """Inner product of the two differences: less than 0 if the move undoes some of what fewer steps spoil."""
        return (self.error - base - self.apart) / 2 if base else 0.0


@dataclass(frozen=True, slots=True)
class _Sum:
    """Errors of several moves: what they do in the direction that fewer steps spoil adds up, the rest in squares."""

    along: float = 0.0
    across: float = 0.0

    def total(self, base: float) -> float:
        return self.across + ((base + self.along) ** 2 / base if base else 0.0)


@dataclass(frozen=True, slots=True)
class MoveTable:
    """What single moves cost and spoil, in a schedule of one length.

    Attributes:
        effects: for each step, by move, what the move does alone.
        costs: of the moves, in full steps.
        fits: what reuses and guidance differences are made of.
        base: mean square distance of this schedule's plain run from the plain run of the schedule asked for.
    """

    effects: Sequence[Mapping[str, Effect]]
    costs: Mapping[str, float]
    fits: Fits
    base: float = 0.0

    @property
    def steps(self) -> int:
        """Steps of the schedule."""
        return len(self.effects)

    def cost(self, moves: Sequence[str]) -> float:
        """In full steps."""
        return sum(self.costs[move] for move in moves)

    def error(self, moves: Sequence[str]) -> float:
        """Expected mean square error; infinite where a move was not measured or has nothing to reuse."""
        past, sum_ = Past(), _Sum()
        for index, move in enumerate(moves):
            sum_ = self._with(sum_, index, move, past)
            past = past.after(index, move, self.fits.high)
        return sum_.total(self.base)

    def _with(self, sum_: _Sum, index: int, move: str, past: Past) -> _Sum:
        """With `move` made at step `index`."""
        for part in parts_of(move) if move != "full" else ():
            alone, scale = self.effects[index].get(part), self._scale(index, part, past)
            if alone is None or scale == math.inf:
                return _Sum(0.0, math.inf)
            along = alone.along(self.base) * math.sqrt(scale)
            across = scale * alone.apart - (along**2 / self.base if self.base else 0.0)
            sum_ = _Sum(sum_.along + along, sum_.across + across)
        return sum_

    def _scale(self, index: int, part: str, past: Past) -> float:
        """How much more than in the measurement, where all steps before were computed, a reuse leaves unexplained."""
        if part not in ("reuse", "full+delta"):
            return 1.0
        known = past.of(part)
        if not known:
            return math.inf
        measured = self.fits.fit(index, part, self.fits.before(index, part)).residual
        return self.fits.fit(index, part, known).residual / measured if measured else 1.0


@dataclass(frozen=True, slots=True)
class Expected:
    """A list of moves, its cost in full steps, and the mean square error that is expected of it."""

    moves: tuple[str, ...]
    cost: float
    error: float


_State = tuple[float, _Sum, tuple[str, ...], Past]
"""Cost so far, errors so far, the moves, and what the coming step can be made of."""


def expected_best(table: MoveTable, most: float) -> list[Expected]:
    """Lists of moves that cost at most `most` full steps, for every cost the best ones, the best first: a beam search.

    Of lists with like cost, so many are followed up that the best are hardly ever lost; among lists that cost the same
    and leave the same steps to reuse, only the best is.
    """
    base = table.base
    layer: list[_State] = [(0.0, _Sum(), (), Past())]
    for index in range(table.steps):
        following: dict[tuple[int, Past], _State] = {}
        for cost, before, moves, past in layer:
            for move, price in table.costs.items():
                total, sum_ = cost + price, table._with(before, index, move, past)
                if total > most + 1e-9 or sum_.across == math.inf:
                    continue
                then = past.after(index, move, table.fits.high)
                key = (round(1000 * total), then)
                if key not in following or sum_.total(base) < following[key][1].total(base):
                    following[key] = (total, sum_, (*moves, move), then)
        layer = sorted(following.values(), key=lambda state: state[1].total(base))
        if index + 1 == table.steps:
            break  # nothing follows: no list is lost to like ones that cost a little more than a budget
        buckets: dict[int, list[_State]] = {}
        for state in layer:
            bucket = buckets.setdefault(int(state[0] / _BUCKET), [])
            if len(bucket) < _WIDTH:
                bucket.append(state)
        layer = [state for bucket in buckets.values() for state in bucket]
    found = [Expected(moves, cost, sum_.total(base)) for cost, sum_, moves, _ in layer]
    return sorted(found, key=lambda one: (one.error, one.cost))


def neighbours(table: MoveTable, moves: Sequence[str], most: float) -> Iterator[Expected]:
    """`moves` with one move changed or two exchanged, as far as they cost at most `most` full steps."""
    found = set()
    for index in range(table.steps):
        for move in table.costs:
            found.add((*moves[:index], move, *moves[index + 1 :]))
        for other in range(index):
            exchanged = list(moves)
            exchanged[index], exchanged[other] = moves[other], moves[index]
            found.add(tuple(exchanged))
    for one in sorted(found - {tuple(moves)}):
        error, cost = table.error(one), table.cost(one)
        if error < math.inf and cost <= most + 1e-9:
            yield Expected(one, cost, error)
