"""The search against trying everything."""

from __future__ import annotations

import itertools
import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from halfframe import Recipe
from halfframe.tuning.search import MoveTable, best_moves, measurable, parts_of

COSTS = {
    "full": 1.0,
    "merge:2": 0.38,
    "full+cond": 0.5,
    "merge:2+cond": 0.2,
    "full+delta": 0.5,
    "reuse": 0.0,
    "reuse:1.5,-0.5": 0.0,
}


def allowed(moves: tuple[str, ...], high: int) -> bool:
    """The rules, written out: a computed start, no two reuses in a row, a difference to reuse of the same expert."""
    free = ("reuse", "reuse:1.5,-0.5")
    if moves[0] in free or any(a in free and b in free for a, b in itertools.pairwise(moves)):
        return False
    for index, move in enumerate(moves):
        since = 0 if index < high else high
        if move.endswith("+delta") and not any("+" not in m and m not in free for m in moves[since:index]):
            return False
    return True


@given(st.data())
def test_the_search_finds_what_trying_everything_finds(data: st.DataObject) -> None:
    steps = data.draw(st.integers(1, 4))
    high = data.draw(st.integers(0, steps))
    budget = data.draw(st.sampled_from([0.5, 1.0, 1.9, 2.5, 3.3, float(steps)]))
    error = st.floats(0.01, 1.0)
    single = ("merge:2", "full+cond", "full+delta", "reuse")
    errors = [{move: data.draw(error) for move in single} for _ in range(steps)]
    for number, found_alone in enumerate(errors):
        found_alone["reuse:1.5,-0.5"] = data.draw(error) if measurable(number, "reuse:1.5,-0.5", high) else math.inf
    table = MoveTable(errors, COSTS, high)
    every = [
        (sum(0.0 if m == "full" else sum(errors[i][p] for p in parts_of(m)) for i, m in enumerate(moves)), moves)
        for moves in itertools.product(COSTS, repeat=steps)
        if allowed(moves, high) and sum(COSTS[m] for m in moves) <= budget + 1e-9 and "reuse:1.5,-0.5" not in moves[:2]
    ]
    found = best_moves(table, budget)
    if not every:
        assert found is None
        return
    assert found is not None
    assert allowed(found, high)
    assert table.cost(found) <= budget + 1e-9
    assert table.error(found) == pytest.approx(min(every)[0])
    Recipe(found)  # is one


def test_a_composite_move_is_the_sum_of_its_parts() -> None:
    assert parts_of("merge:2+cond") == ("merge:2", "full+cond")
    assert parts_of("full+delta") == ("full+delta",)
    assert parts_of("reuse") == ("reuse",)
    table = MoveTable([{"merge:2": 0.1, "full+cond": 0.2}], COSTS, 1, base=0.5)
    assert table.error(["merge:2+cond"]) == pytest.approx(0.8)
    assert math.isinf(table.error(["reuse"]))  # was not measured


def test_forbidden_moves_are_not_made() -> None:
    errors = [{"merge:2": 0.1, "full+cond": 0.2, "reuse": 0.3}] * 3
    table = MoveTable(errors, COSTS, 3)
    first = best_moves(table, 2.4)
    assert first is not None
    index = next(i for i, move in enumerate(first) if move != "full")
    second = best_moves(table, 2.4, frozenset({(index, first[index])}))
    assert second is not None
    assert second[index] != first[index]
    assert table.error(second) >= table.error(first)


def test_what_can_be_measured_alone() -> None:
    assert [measurable(index, "reuse", 2) for index in range(3)] == [False, True, True]
    assert [measurable(index, "reuse:1.5,-0.5", 2) for index in range(4)] == [False, False, True, True]
    assert [measurable(index, "full+delta", 2) for index in range(4)] == [False, True, False, True]
    assert measurable(0, "merge:2", 2)
