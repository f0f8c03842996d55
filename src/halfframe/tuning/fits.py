"""What a step shows, told from the steps before it: least squares over what plain runs showed.

A plain run costs its forward passes whether or not anything is fitted to it, so weights of reuses are free. They depend
on which of the steps before are computed, so every recipe gets its own.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from halfframe.sampling.weights import weights_text
from halfframe.strategies.recipe import MOST_WEIGHT, reuses

__all__ = ["TERMS", "Fit", "Fits", "Past"]

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
class Past:
    """What the coming step can be made of: the latest steps that are computed, and that have a guidance difference."""

    computed: tuple[int, ...] = ()
    differences: tuple[int, ...] = ()

    def after(self, index: int, move: str, high: int) -> Past:
        """With `move` made at `index`."""
        differences = () if index + 1 == high else self.differences
        if reuses(move):
            return Past(self.computed, differences)
        if "+" not in move and index + 1 != high:
            differences = (*differences, index)[-TERMS:]
        return Past((*self.computed, index)[-TERMS:], differences)

    def of(self, part: str) -> tuple[int, ...]:
        """Those of them that ``reuse`` or ``full+delta`` is made of."""
        return self.computed if part == "reuse" else self.differences


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

    def resolved(self, moves: Sequence[str]) -> tuple[str, ...]:
        """The moves with the weights of their reuses: ``reuse`` -> ``reuse:1.72,-0.72``."""
        past, found = Past(), []
        for index, move in enumerate(moves):
            part = "full+delta" if move.endswith("+delta") else move
            if part in ("reuse", "full+delta"):
                weights = weights_text(self.fit(index, part, past.of(part)).weights)
                found.append(f"{move}:{weights}" if weights else move)
            else:
                found.append(move)
            past = past.after(index, move, self.high)
        return tuple(found)

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
