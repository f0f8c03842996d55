"""Weighted sums of what the last steps computed, latest first: what a `Reuse` and a `Delta` stand in with."""

from __future__ import annotations

import math
from collections.abc import Sequence
from decimal import Decimal
from typing import Any, TypeAlias

from torch import Tensor

from halfframe.errors import OptionError

__all__ = ["MOST_WEIGHTS", "Known", "checked_weights", "remembering", "weighted_sum", "weights_text"]

MOST_WEIGHTS = 4
"""How many earlier steps can stand in for one."""
Known: TypeAlias = Sequence[tuple[int, Tensor]]
"""What earlier steps computed, with the index of each; the latest last."""


def checked_weights(what: str, weights: Any) -> tuple[float, ...]:
    """`weights` as a tuple of floats.

    Raises:
        OptionError: they are not 1 to `MOST_WEIGHTS` finite numbers; the message begins with `what`.
    """
    listed = isinstance(weights, Sequence) and not isinstance(weights, str) and 1 <= len(weights) <= MOST_WEIGHTS
    if not listed or not all(_is_finite(weight) for weight in weights):
        raise OptionError(f"{what}: weights must be 1 to {MOST_WEIGHTS} finite numbers, latest first, got {weights!r}.")
    return tuple(float(weight) for weight in weights)


def weights_text(weights: Sequence[float]) -> str:
    """Weights as in a recipe's move, to four digits: ``1.72,-0.72``; empty where the latest stands in as it is."""
    text = ",".join(format(Decimal(f"{weight + 0.0:.4g}"), "f") for weight in weights)
    return "" if text == "1" else text


def remembering(known: Known, index: int, tensor: Tensor, count: int) -> list[tuple[int, Tensor]]:
    """The `count` latest of what is `known` and of `tensor`, of step `index`; it replaces an earlier one of that step.

    Samplers of ComfyUI may evaluate a step more than once.
    """
    return [*(one for one in known if one[0] != index), (index, tensor)][-count:]


def weighted_sum(weights: Sequence[float], known: Known) -> Tensor | None:
    """The sum of what is `known`, by `weights`, latest first, in float32; None if there are fewer than weights."""
    if len(known) < len(weights):
        return None
    first, *others = (weight * tensor.float() for weight, (_, tensor) in zip(weights, reversed(known), strict=False))
    return sum(others, first)


def _is_finite(weight: object) -> bool:
    return isinstance(weight, int | float) and not isinstance(weight, bool) and math.isfinite(weight)
