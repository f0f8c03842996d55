"""Confidence intervals: of shares by Wilson's score, of means and paired differences by the bootstrap."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import NormalDist

import torch
from torch import Tensor

from halfframe.errors import OptionError

__all__ = ["Interval", "difference_interval", "mean_interval", "share_interval"]


@dataclass(frozen=True, slots=True)
class Interval:
    """An estimate and the ends of its confidence interval, in the unit of what was estimated."""

    estimate: float
    low: float
    high: float

    def __str__(self) -> str:
        return f"{self.estimate:.2f} [{self.low:.2f}, {self.high:.2f}]"


def share_interval(count: int, total: int, confidence: float = 0.95) -> Interval:
    """Of the share ``count / total``, 0..1 (Wilson, 1927).

    Raises:
        OptionError: a count outside 0..total, no trial, or a confidence outside 0..1.
    """
    if not 0 <= count <= total or total < 1 or not 0 < confidence < 1:
        raise OptionError(
            f"count={count}, total={total}, confidence={confidence}; needed: 0 <= count <= total, total >= 1, "
            "0 < confidence < 1."
        )
    z = NormalDist().inv_cdf((1 + confidence) / 2)
    share, spread = count / total, z * z / total
    middle = (share + spread / 2) / (1 + spread)
    half = z / (1 + spread) * math.sqrt(share * (1 - share) / total + spread / (4 * total))
    return Interval(share, max(0.0, middle - half), min(1.0, middle + half))


def mean_interval(
    values: Sequence[float] | Tensor, confidence: float = 0.95, draws: int = 4000, seed: int = 0
) -> Interval:
    """Of the mean of one number per clip: percentiles of the means of `draws` resampled sets (Efron, 1979).

    Raises:
        OptionError: fewer than two values, one that is not finite, fewer than 100 draws, or a confidence outside 0..1.
    """
    data = torch.as_tensor(values, dtype=torch.float64).flatten().cpu()
    if len(data) < 2 or not bool(data.isfinite().all()) or draws < 100 or not 0 < confidence < 1:
        raise OptionError(
            f"{len(data)} values, {int((~data.isfinite()).sum())} of them not finite, draws={draws}, "
            f"confidence={confidence}; needed: 2 finite values or more, draws >= 100, 0 < confidence < 1."
        )
    generator = torch.Generator().manual_seed(seed)
    means = data[torch.randint(len(data), (draws, len(data)), generator=generator)].mean(dim=1)
    ends = torch.quantile(means, torch.tensor([(1 - confidence) / 2, (1 + confidence) / 2], dtype=torch.float64))
    return Interval(float(data.mean()), *map(float, ends))


def difference_interval(
    first: Sequence[float] | Tensor,
    second: Sequence[float] | Tensor,
    confidence: float = 0.95,
    draws: int = 4000,
    seed: int = 0,
) -> Interval:
    """Of the mean of ``first - second``, two numbers per clip: PSNR of two variants, or right (1) and wrong (0).

    Clips are resampled and not their numbers, so what one prompt and seed does to both variants cancels out.

    Raises:
        OptionError: different numbers of values, and as for `mean_interval`.
    """
    a, b = (torch.as_tensor(values, dtype=torch.float64).flatten().cpu() for values in (first, second))
    if len(a) != len(b):
        raise OptionError(f"{len(a)} and {len(b)} values; needed: as many of each, one per clip, in one order.")
    return mean_interval(a - b, confidence, draws, seed)
