"""What a step shows, told from the steps before it: least squares over what plain runs showed.

A plain run costs its forward passes whether or not anything is fitted to it, so weights of reuses are free. They depend
on which of the steps before are computed, so every recipe gets its own.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from halfframe.strategies.recipe import MOST_WEIGHT

__all__ = ["TERMS", "Fit", "Fits"]

TERMS = 3
"""How many earlier steps are added up at most."""
_RIDGE = 1e-6
"""Of the mean square, added to the diagonal: where two steps show nearly the same, no huge weights cancel out."""
Products = tuple[tuple[float, ...], ...]


@dataclass(frozen=True, slots=True)
class Fit:
    """Weights of earlier steps, the latest first, and the mean square of what they leave unexplained."""

    weights: tuple[float, ...]
    residual: float


@dataclass(frozen=True, slots=True)
class Fits:
    """Inner products between the steps of plain runs, over all clips.

    Attributes:
        shown: of the guided x0 of every two steps.
        differences: of the guidance differences of every two steps; empty without guidance.
        high: how many of the steps are the high-noise expert's.
        size: how many numbers each product is a sum over.
    """

    shown: Products
    differences: Products
    high: int
    size: int
    _found: dict[tuple[int, str, tuple[int, ...]], Fit] = field(default_factory=dict, repr=False, compare=False)

    def before(self, index: int, part: str) -> tuple[int, ...]:
        """The steps that `part` can be made of if all before `index` are computed: a difference is one expert's."""
        first = self.high if part == "full+delta" and index >= self.high else 0
        return tuple(range(first, index))

    def fit(self, index: int, part: str, known: Sequence[int]) -> Fit:
        """How ``reuse`` or ``full+delta`` at step `index` is made of the `known` steps, increasing, at least one."""
        key = (index, part, tuple(known)[-TERMS:])
        if key not in self._found:
            self._found[key] = self._solved(*key)
        return self._found[key]

    def _solved(self, index: int, part: str, known: tuple[int, ...]) -> Fit:
        """Of fewer steps where a weight would be larger than recipes take."""
        products = self.shown if part == "reuse" else self.differences
        latest = known[::-1]
        normal = np.array([[products[one][other] for other in latest] for one in latest])
        wanted = np.array([products[one][index] for one in latest])
        ridge = _RIDGE * max(float(normal.trace()) / len(latest), 1e-30)
        weights = np.linalg.solve(normal + ridge * np.eye(len(latest)), wanted)
        weights = np.array([float(f"{weight:.4g}") for weight in weights])
        if abs(weights).max() > MOST_WEIGHT and len(known) > 1:
            return self._solved(index, part, known[1:])
        weights = weights.clip(-MOST_WEIGHT, MOST_WEIGHT)
        left = products[index][index] - 2 * float(weights @ wanted) + float(weights @ normal @ weights)
        return Fit(tuple(map(float, weights)), max(left, 0.0) / self.size)
