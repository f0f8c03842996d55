"""The search that measures, on a truth that is known: what it finds, what it learns, and what it never does."""

from __future__ import annotations

import itertools
import zlib
from collections.abc import Callable, Mapping, Sequence

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from halfframe.compare.progress import Progress
from halfframe.errors import OptionError
from halfframe.strategies.recipe import unweighted
from halfframe.tuning.fits import Fits
from halfframe.tuning.measured import Search, _Schedule
from halfframe.tuning.search import Effect, Expected, MoveTable

COSTS = {"full": 1.0, "merge:2": 0.4, "merge:4": 0.2}
Truth = Callable[[tuple[str, ...]], float]


class Known:
    """A bench whose errors are those of a formula; what was measured is kept, in order."""

    cases = 1

    def __init__(self, steps: int, truth: Truth, guided: bool = False) -> None:
        self.steps = steps
        self.progress = Progress(lambda _: None, 0)
        self.seen: list[tuple[str, ...]] = []
        self._truth = truth
        self._guided = guided

    def measured(self, moves: Sequence[str]) -> list[float]:
        self.seen.append(tuple(map(unweighted, moves)))
        return [self._truth(self.seen[-1])]

    def high(self, steps: int) -> int:
        return steps

    def sigmas(self, steps: int) -> tuple[float, ...]:
        return tuple(1 - index / steps for index in range(steps))

    def guided(self) -> bool:
        return self._guided


def table_of(errors: Sequence[Mapping[str, float]], base: float = 0.0, costs: Mapping[str, float] = COSTS) -> MoveTable:
    """With moves that add `errors`; what they do is at right angles to what fewer steps spoil, unless it is less."""
    effects = [
        {move: Effect(error if error > 0 else base / 5, base + error) for move, error in row.items()} for row in errors
    ]
    values = np.random.default_rng(0).normal(size=(len(errors), 40)) + 1
    products = tuple(map(tuple, (values @ values.T).tolist()))
    return MoveTable(effects, costs, Fits(products, (), len(errors), 40), base)


def search_of(bench: Known, tables: Sequence[MoveTable], budgets: Sequence[float]) -> Search:
    return Search(bench, tables, budgets)  # type: ignore[arg-type]


def everything(table: MoveTable, budget: float) -> list[tuple[str, ...]]:
    lists = itertools.product(table.costs, repeat=table.steps)
    return [moves for moves in lists if table.cost(moves) <= budget + 1e-9]


def cost_of(moves: Sequence[str]) -> float:
    return sum(COSTS[move] for move in moves)


def noise_of(moves: tuple[str, ...]) -> float:
    """0..1, for each list of moves another."""
    return zlib.crc32(" ".join(moves).encode()) / 2**32


ERRORS = st.lists(
    st.fixed_dictionaries({"merge:2": st.floats(0.01, 1), "merge:4": st.floats(0.01, 1)}), min_size=4, max_size=4
)


@settings(max_examples=40)
@given(ERRORS, st.permutations([1.0, 1.7, 2.5, 3.3]))
def test_what_adds_up_is_found_with_one_run_for_each_budget(
    errors: list[dict[str, float]], budgets: list[float]
) -> None:
    table = table_of(errors)

    def truth(moves: tuple[str, ...]) -> float:
        return table.error(moves) if len(moves) == 4 else 10.0

    search = search_of(Known(4, truth), [table], budgets)
    for budget in budgets:
        found = search.best(budget, 1)
        assert found.cost <= budget + 1e-9
        assert found.error == pytest.approx(min(map(table.error, everything(table, budget))))


@settings(max_examples=40)
@given(ERRORS, st.permutations([1.0, 1.7, 2.5, 3.3]), st.integers(1, 4))
def test_it_returns_the_best_that_was_measured_within_the_budget(
    errors: list[dict[str, float]], budgets: list[float], runs: int
) -> None:
    table = table_of(errors)
    bench = Known(4, lambda moves: noise_of(moves) * table.error(moves) if len(moves) == 4 else 5.0 - len(moves))
    search, kept = search_of(bench, [table], budgets), 0
    for budget in budgets:
        found = search.best(budget, runs)
        recipes = [moves for moves in bench.seen if len(moves) == 4]
        assert len(set(bench.seen)) == len(bench.seen)  # nothing twice
        assert len(recipes) <= kept + runs
        assert all(cost_of(moves) <= budget + 1e-9 for moves in recipes[kept:])
        kept = len(recipes)
        within = [moves for moves in bench.seen if cost_of(moves) <= budget + 1e-9]
        assert found.recipe.moves == min(within, key=bench._truth)
        assert found.error == bench._truth(found.recipe.moves)


def test_of_a_schedule_that_turns_out_worse_than_expected_less_is_expected() -> None:
    whole = table_of([{"merge:2": 0.1, "merge:4": 0.12}] * 4)
    short = table_of([{"merge:2": 0.2, "merge:4": 0.4}] * 3, 0.1)
    factors = {4: 10.0, 3: 1.0}
    bench = Known(4, lambda moves: factors[len(moves)] * {4: whole, 3: short}[len(moves)].error(moves) + 1e-3)
    search = search_of(bench, [whole, short], [3.4])
    bench.measured = lambda moves: Known.measured(bench, moves) if len(moves) > 2 else [9.0]  # type: ignore[method-assign]
    found = search.best(3.4, 2)
    assert [len(moves) for moves in bench.seen[:2]] == [4, 3]
    assert found.predicted == pytest.approx(0.1)
    assert found.error == pytest.approx(0.101)


def test_the_nearest_measured_recipe_corrects() -> None:
    schedule = _Schedule(table_of([{}] * 4), [])
    one = Expected(("merge:2", "full", "merge:2", "full"), 2.8, 0.5)
    assert schedule.corrected(one) == 0.5
    schedule.ratios[("merge:2", "full", "full", "full")] = 20.0
    schedule.ratios[("full", "merge:2", "full", "merge:2")] = 3.0
    assert schedule.corrected(one) == 10.0
    assert schedule.corrected(Expected(("full", "merge:2", "merge:2", "merge:2"), 2.2, 0.5)) == 1.5


def test_what_is_like_the_best_is_tried_beside_what_is_expected() -> None:
    """Of lists that cost the same, the beam search gives one."""
    table = table_of([{"merge:2": 0.1 * (index + 1)} for index in range(4)], costs={"full": 1.0, "merge:2": 0.5})
    full, merged = "full", "merge:2"
    truth = {(merged, merged, full, full): 0.3, (merged, full, merged, full): 0.01}
    bench = Known(4, lambda moves: truth.get(moves, 50.0))
    found = search_of(bench, [table], [3.0]).best(3.0, 2)
    assert bench.seen[:2] == list(truth)
    assert found.error == 0.01


def test_what_was_measured_for_a_larger_budget_is_used() -> None:
    table = table_of([{"merge:2": 0.1, "merge:4": 0.2}] * 4)
    bench = Known(4, lambda moves: 0.001 + noise_of(moves) if len(moves) == 4 else 7.0)
    search = search_of(bench, [table], [4.0, 2.8])
    search.best(4.0, 12)
    cheap = [moves for moves in bench.seen if len(moves) == 4 and cost_of(moves) <= 2.8 + 1e-9]
    assert len(cheap) > 1
    found = search.best(2.8, 0)
    assert found.recipe.moves == min(cheap, key=bench._truth)


@pytest.mark.parametrize("nearer", [True, False])
def test_fewer_steps_are_preferred_where_they_are_nearer(nearer: bool) -> None:
    table = table_of([{"merge:2": 0.1, "merge:4": 0.2}] * 4)
    bench = Known(
        4, lambda moves: (0.01 if nearer else 9.0) / len(moves) if set(moves) <= {"full", "full+cond"} else 0.3, True
    )
    found = search_of(bench, [table], [3.0]).best(3.0, 2)
    rivals = [("full",) * 3, ("full", "full", "full+cond"), ("full", "full", "full+cond", "full+cond")]
    assert bench.seen[2:] == rivals
    assert (found.recipe.moves in rivals) == nearer
    assert (found.predicted is None) == nearer
    assert found.cost <= 3.0


def test_recipes_of_fewer_steps_are_found_where_they_are_expected_to_be_nearer() -> None:
    whole, short = (
        table_of([{"merge:2": 1.0, "merge:4": 2.0}] * 4),
        table_of([{"merge:2": 0.01, "merge:4": 0.5}] * 3, 0.1),
    )
    tables = {4: whole, 3: short}
    bench = Known(4, lambda moves: tables[len(moves)].error(moves) if len(moves) in tables else 9.0)
    found = search_of(bench, [whole, short], [2.4]).best(2.4, 1)
    assert len(found.recipe.moves) == 3
    assert found.error == pytest.approx(0.11)


def test_a_sum_that_undoes_what_fewer_steps_spoil_is_not_run_first() -> None:
    """In a schedule of fewer steps a move alone may come nearer by chance; two such do not add up to nothing."""
    good, doubtful = table_of([{"merge:2": 0.02}] * 4), table_of([{"merge:2": -0.3}] * 3, 0.5)
    bench = Known(4, lambda moves: 0.9)
    search_of(bench, [good, doubtful], [2.8]).best(2.8, 1)
    assert len(bench.seen[0]) == 4  # 0.04 is expected of it, and 0.06 of the other


def test_a_budget_that_no_list_of_moves_meets() -> None:
    with pytest.raises(
        OptionError, match=r"no recipe costs 0.50 full steps or less, the cheapest is 0.80; give a larger"
    ):
        search_of(Known(4, lambda _: 1.0), [table_of([{"merge:4": 0.1}] * 4)], [2.0, 0.5])
