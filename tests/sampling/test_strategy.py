"""What moves say of themselves, and what stands in where nothing is computed."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import halfframe
from halfframe import Recipe, Reuse
from halfframe.sampling.guidance import Delta, suffix_of
from halfframe.sampling.strategy import label_of
from halfframe.sampling.weights import remembering


@pytest.mark.parametrize(
    ("move", "label"),
    [
        (None, "full"),
        (Reuse(), "reuse"),
        (Reuse((1.72, -0.72)), "reuse:1.72,-0.72"),
        (Reuse((1, 0)), "reuse:1,0"),
        (Reuse((0.5,)), "reuse:0.5"),
        (Reuse((2 / 3, -0.0, 1e-5)), "reuse:0.6667,0,0.00001"),
        (Reuse((0.99999,)), "reuse"),
    ],
)
def test_labels_are_recipes_moves(move: Reuse | None, label: str) -> None:
    assert label_of(move) == label
    recipe = Recipe(("full", "full", "full", label))
    assert recipe.moves[3] == label


@given(st.lists(st.floats(-10, 10), min_size=1, max_size=4))
def test_a_label_reads_as_a_move_of_the_same_label(weights: list[float]) -> None:
    step = halfframe.Step(4, 6, 900.0, 0.9, "high", 4, 6, 9)
    label = label_of(Reuse(tuple(weights)))
    again = Recipe(("full", "full", "full", "full", label, "full")).move(step)
    assert isinstance(again, Reuse)
    assert again.weights == pytest.approx(weights, rel=1e-3)
    assert label_of(again) == label
    suffix = suffix_of(Delta(tuple(weights)))
    rule = Recipe(("full", "full", "full", "full", f"full{suffix}", "full")).at(step)
    assert isinstance(rule, Delta)
    assert rule.weights == again.weights
    assert suffix_of(rule) == suffix


def test_the_weights_go_with_the_latest_first() -> None:
    known = list(enumerate(torch.tensor([1.0, 10.0, 100.0])))
    assert Reuse().shown(known) == 100
    assert Reuse((2, -1)).shown(known) == 190
    assert Reuse((0.5, 0, 3)).shown(known) == 53
    assert Reuse((1, 0, 0, 0)).shown(known) is None
    assert Reuse().shown([]) is None
    assert [Reuse(weights).needs for weights in ((1.0,), (1, 0), (0, 0, 0, 1))] == [1, 2, 4]


def test_what_is_reused_unchanged_is_exact() -> None:
    x0 = torch.randn(50)
    shown = Reuse().shown([(0, x0)])
    assert shown is not None
    assert torch.equal(shown, x0)


def test_only_the_latest_of_each_step_is_remembered() -> None:
    known: list[tuple[int, torch.Tensor]] = []
    for value, index in enumerate((0, 1, 1, 4)):
        known = remembering(known, index, torch.tensor(float(value)), 2)
    assert [(index, int(value)) for index, value in known] == [(1, 2), (4, 3)]


@pytest.mark.parametrize("made", [Reuse, Delta])
@pytest.mark.parametrize(
    "weights", [(), (1,) * 5, (float("nan"),), (1, float("inf")), ("1",), "1", (True,), (None,), 1.0, None, {1.0}]
)
def test_weights_are_one_to_four_finite_numbers(made: Any, weights: object) -> None:
    with pytest.raises(halfframe.OptionError, match=f"{made.__name__}: weights must be 1 to 4 finite numbers"):
        made(weights)


def test_weights_may_be_a_list() -> None:
    assert Reuse([2, -1]) == Reuse((2.0, -1.0))  # type: ignore[arg-type]
    assert hash(Reuse([2, -1])) == hash(Reuse((2.0, -1.0)))  # type: ignore[arg-type]
