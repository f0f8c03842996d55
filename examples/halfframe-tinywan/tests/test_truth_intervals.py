"""Intervals against known values, and how often they hold the truth."""

from __future__ import annotations

import pytest
import torch
from halfframe_tinywan.truth import difference_interval, mean_interval, share_interval

from halfframe.errors import OptionError


@pytest.mark.parametrize(
    ("count", "total", "low", "high"),
    [(0, 10, 0.0, 0.2775), (10, 10, 0.7225, 1.0), (5, 10, 0.2366, 0.7634), (81, 263, 0.2553, 0.3662)],
)
def test_wilson_as_published(count: int, total: int, low: float, high: float) -> None:
    found = share_interval(count, total)
    assert found.estimate == count / total
    assert (found.low, found.high) == pytest.approx((low, high), abs=1e-4)


def test_bootstrap_holds_the_mean_about_as_often_as_it_says() -> None:
    generator = torch.Generator().manual_seed(0)
    found = [mean_interval(torch.randn(40, generator=generator) + 3, draws=500) for _ in range(200)]
    assert 0.89 <= sum(one.low <= 3 <= one.high for one in found) / 200 <= 0.99


def test_a_paired_difference_is_not_blurred_by_the_spread_of_clips() -> None:
    generator = torch.Generator().manual_seed(0)
    clips = 10 * torch.randn(50, generator=generator)
    better = clips + 0.5 + 0.1 * torch.randn(50, generator=generator)
    found = difference_interval(better, clips)
    assert 0.4 < found.low < found.estimate < found.high < 0.6
    alone = mean_interval(better)
    assert alone.high - alone.low > 10 * (found.high - found.low)
    assert found == difference_interval(better, clips)  # the seed is fixed
    assert str(found) == f"{found.estimate:.2f} [{found.low:.2f}, {found.high:.2f}]"


def test_what_has_no_interval_is_refused() -> None:
    with pytest.raises(OptionError, match="one per clip, in one order"):
        difference_interval([1.0, 2.0], [1.0])
    with pytest.raises(OptionError, match="1 of them not finite"):
        mean_interval([1.0, float("inf"), 2.0])
    with pytest.raises(OptionError, match="2 finite values or more"):
        mean_interval([1.0])
    with pytest.raises(OptionError, match="needed: 0 <= count <= total"):
        share_interval(3, 2)
