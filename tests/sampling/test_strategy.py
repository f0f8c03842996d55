"""What moves say of themselves, and what stands in where nothing is computed."""

from __future__ import annotations

import pytest
import torch

import halfframe
from halfframe import Reuse
from halfframe.sampling.forward import remembering
from halfframe.sampling.strategy import label_of


@pytest.mark.parametrize(
    ("move", "label"), [(None, "full"), (Reuse(), "reuse"), (Reuse(0.5), "extend:0.5"), (Reuse(-1), "extend:-1")]
)
def test_labels_are_recipes_moves(move: Reuse | None, label: str) -> None:
    assert label_of(move) == label


def test_what_lies_on_a_straight_line_is_extended_exactly() -> None:
    slope, start = torch.randn(2, 3), torch.randn(2, 3)
    known = [(sigma, start + sigma * slope) for sigma in (0.9, 0.7)]
    expected = start + 0.2 * slope
    torch.testing.assert_close(Reuse(1.0).shown(known, 0.2), expected)
    torch.testing.assert_close(Reuse(0.5).shown(known, 0.2), (expected + known[-1][1]) / 2)
    assert Reuse().shown(known, 0.2) is known[-1][1]
    assert Reuse(1.0).shown(known[:1], 0.2) is None
    assert Reuse().shown([], 0.2) is None


def test_only_the_latest_of_each_noise_level_is_remembered() -> None:
    known: list[tuple[float, torch.Tensor]] = []
    for value, sigma in enumerate((0.9, 0.7, 0.7, 0.4)):
        known = remembering(known, sigma, torch.tensor(float(value)), 2)
    assert [(sigma, int(value)) for sigma, value in known] == [(0.7, 2), (0.4, 3)]


@pytest.mark.parametrize("extend", [float("nan"), float("inf"), "1", True, None])
def test_extend_is_a_finite_number(extend: object) -> None:
    with pytest.raises(halfframe.OptionError, match=r"Reuse: extend must be a finite number, got "):
        Reuse(extend)  # type: ignore[arg-type]
