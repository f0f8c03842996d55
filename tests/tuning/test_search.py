"""The search against trying everything."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from halfframe import Recipe
from halfframe.tuning.fits import Fits
from halfframe.tuning.search import Effect, MoveTable, expected_best, measurable, neighbours, parts_of

COSTS = {
    "full": 1.0,
    "merge:2": 0.38,
    "full+cond": 0.5,
    "merge:2+cond": 0.2,
    "full+delta": 0.5,
    "merge:2+delta": 0.2,
    "reuse": 0.0,
}


def fits_of(steps: int, high: int, seed: int = 0) -> Fits:
    values = np.random.default_rng(seed).normal(size=(2, steps, 30)) + 1
    shown, differences = (tuple(map(tuple, (one @ one.T).tolist())) for one in values)
    return Fits(shown, differences, high, 30)


def effects(errors: dict[str, float]) -> dict[str, Effect]:
    """Of a schedule of as many steps as were asked for."""
    return {move: Effect(error, error) for move, error in errors.items()}


def expected_error(table: MoveTable, moves: tuple[str, ...]) -> float:
    """Written out, with the lists of the steps that each move can be made of."""
    fits, along, across = table.fits, 0.0, 0.0
    for index, move in enumerate(moves):
        first = fits.high if index >= fits.high else 0
        before = list(enumerate(moves[:index]))
        computed = [i for i, made in before if made != "reuse"]
        both = [i for i, made in before if i >= first and made in ("full", "merge:2")]
        for part in parts_of(move) if move != "full" else ():
            scale = 1.0
            if part in ("reuse", "full+delta"):
                known, all_ = (computed, range(index)) if part == "reuse" else (both, range(first, index))
                if not known or part not in table.effects[index]:
                    return math.inf
                scale = fits.fit(index, part, known).residual / fits.fit(index, part, tuple(all_)).residual
            if part not in table.effects[index]:
                return math.inf
            alone = table.effects[index][part]
            inner = 0.5 * (alone.error - table.base - alone.apart) * scale**0.5 if table.base else 0.0
            along += inner
            across += alone.apart * scale - (inner**2 / table.base if table.base else 0.0)
    return across + ((table.base + along) ** 2 / table.base if table.base else 0.0)


@given(st.data())
def test_the_search_finds_what_trying_everything_finds(data: st.DataObject) -> None:
    steps = data.draw(st.integers(1, 4))
    high = data.draw(st.integers(0, steps))
    budget = data.draw(st.sampled_from([0.5, 1.0, 1.9, 2.5, 3.3, float(steps)]))
    error = st.floats(0.01, 1.0)
    single = ("merge:2", "full+cond", "full+delta", "reuse")
    errors = [
        effects({move: data.draw(error) for move in single if measurable(index, move, high)}) for index in range(steps)
    ]
    table = MoveTable(errors, COSTS, fits_of(steps, high, data.draw(st.integers(0, 99))))
    every = [
        (expected_error(table, moves), moves)
        for moves in itertools.product(COSTS, repeat=steps)
        if sum(COSTS[move] for move in moves) <= budget + 1e-9
    ]
    least = min(every, default=(math.inf, ()))[0]
    found = expected_best(table, budget)
    if least == math.inf:
        assert not found
        return
    assert min(one.error for one in found) == pytest.approx(least)
    for one in found:
        assert one.cost == pytest.approx(table.cost(one.moves))
        assert one.cost <= budget + 1e-9
        assert one.error == pytest.approx(table.error(one.moves)) == pytest.approx(expected_error(table, one.moves))
        Recipe(table.fits.resolved(one.moves), high_noise_steps=high)  # is one, and every reuse has what it needs


def test_the_best_of_every_cost_is_found_at_once() -> None:
    rows = [
        effects(one)
        for one in ({"merge:2": 0.1}, *({"reuse": 0.01 * index, "full+delta": 0.02} for index in range(1, 5)))
    ]
    costs = {move: price for move, price in COSTS.items() if move in ("full", "merge:2", "full+delta", "reuse")}
    table = MoveTable(rows, costs, fits_of(5, 5))
    for budget in (1.0, 2.0, 2.9, 4.0, 5.0):
        every = [
            (expected_error(table, moves), moves)
            for moves in itertools.product(costs, repeat=5)
            if sum(costs[move] for move in moves) <= budget + 1e-9
        ]
        found = [one for one in expected_best(table, 5.0) if one.cost <= budget + 1e-9]
        assert min(one.error for one in found) == pytest.approx(min(every)[0])


def test_of_whole_lists_none_is_lost_to_better_ones_that_cost_a_little_more(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("halfframe.tuning.search._WIDTH", 1)
    table = MoveTable([effects({"merge:2": 0.1})], {"full": 1.2, "merge:2": 1.05}, fits_of(1, 1))
    assert [one.moves for one in expected_best(table, 1.2)] == [("full",), ("merge:2",)]


def test_neighbours_differ_in_one_move_or_by_an_exchange() -> None:
    errors = [{"merge:2": 0.1}, *({"reuse": 0.1, "full+delta": 0.1} for _ in range(3))]
    table = MoveTable(list(map(effects, errors)), COSTS, fits_of(4, 4))
    moves = ("full", "reuse", "full", "full+delta")
    found = {one.moves: one for one in neighbours(table, moves, 2.5)}
    assert ("full", "full", "reuse", "full+delta") in found  # exchanged
    assert ("full", "reuse", "full", "reuse") in found  # changed
    assert moves not in found
    assert ("full", "full", "full", "full+delta") not in found  # too dear
    assert ("reuse", "full", "full", "full+delta") not in found  # nothing to reuse
    for one in found.values():
        assert (one.cost, one.error) == (table.cost(one.moves), table.error(one.moves))


@given(st.integers(0, 2**32 - 1), st.floats(0.1, 10.0))
def test_errors_of_fewer_steps_and_of_moves_add_up_as_differences_do(seed: int, size: float) -> None:
    """Each move's difference has a part along that of fewer steps, and a part of its own direction."""
    rng = np.random.default_rng(seed)
    steps, high = 4, 4
    fewer = size * rng.normal(size=50)
    base = np.mean(fewer**2)
    own = np.linalg.qr(np.concatenate([fewer[:, None], rng.normal(size=(50, steps))], 1))[0].T[1:]
    moved = [rng.uniform(-0.5, 0.3) * fewer + rng.uniform(0.1, 2.0) * own[index] for index in range(steps)]
    alone = [Effect(np.mean(move**2), np.mean((fewer + move) ** 2)) for move in moved]
    rows = [{"merge:2": alone[0]}, *({"merge:2": one} for one in alone[1:])]
    table = MoveTable(rows, COSTS, fits_of(steps, high), base)
    for moves in itertools.product(("full", "merge:2"), repeat=steps):
        made = sum((moved[index] for index, move in enumerate(moves) if move != "full"), fewer)
        assert table.error(moves) == pytest.approx(np.mean(made**2))


def test_a_long_reuse_is_worse_also_where_it_undoes_some_of_what_fewer_steps_spoil() -> None:
    rng = np.random.default_rng(0)
    shown = np.cumsum(rng.normal(size=(5, 200)), 0)  # the further back, the less is explained
    fits = Fits(tuple(map(tuple, (shown @ shown.T).tolist())), (), 5, 200)
    row = {"reuse": Effect(0.2, 0.45)}  # base 0.5: nearer to what was asked for
    table = MoveTable([{}, row, row, row, row], COSTS, fits, base=0.5)
    one = table.error(("full", "full", "full", "full", "reuse"))
    assert one == pytest.approx(0.45)
    assert table.error(("full", "reuse", "reuse", "reuse", "reuse")) > 2 * 0.5


def test_weights_are_of_the_steps_that_are_computed() -> None:
    fits = fits_of(5, 2)
    table = MoveTable([{}] * 5, COSTS, fits)
    moves = ("full", "reuse", "merge:2", "full+delta", "reuse")
    found = table.fits.resolved(moves)

    def weights(move: str) -> list[float]:
        return [float(weight) for weight in move.rpartition(":")[2].split(",")]

    assert found[0] == "full"
    assert found[2] == "merge:2"
    assert weights(found[1]) == pytest.approx(fits.fit(1, "reuse", (0,)).weights)
    assert weights(found[3]) == pytest.approx(fits.fit(3, "full+delta", (2,)).weights)
    assert weights(found[4]) == pytest.approx(fits.fit(4, "reuse", (0, 2, 3)).weights)


def test_a_composite_move_is_the_sum_of_its_parts() -> None:
    assert parts_of("merge:2+cond") == ("merge:2", "full+cond")
    assert parts_of("full+delta") == ("full+delta",)
    assert parts_of("reuse") == ("reuse",)
    table = MoveTable([effects({"merge:2": 0.1, "full+cond": 0.2})], COSTS, fits_of(1, 1))
    assert table.error(["merge:2+cond"]) == pytest.approx(0.3)
    assert math.isinf(table.error(["reuse"]))  # was not measured


def test_what_is_tried_alone() -> None:
    assert [measurable(index, "reuse", 2) for index in range(3)] == [False, True, True]
    assert [measurable(index, "full+delta", 2) for index in range(4)] == [False, True, False, True]
    assert [measurable(index, "full+cond", 2) for index in range(4)] == [True, False, True, False]
    assert measurable(0, "merge:2", 2)
