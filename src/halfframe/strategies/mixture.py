"""Weighted means of frames in place of single ones, and what they are to an expert: frames at a lower noise level."""

from __future__ import annotations

import math
from dataclasses import dataclass

from torch import Tensor

from halfframe import frames
from halfframe.errors import OptionError

__all__ = ["Mixture"]


@dataclass(frozen=True, slots=True)
class Mixture:
    """What an expert is given in place of single frames: weighted means of several, and where and how noisy they are.

    The mean of frames with noise of their own has less of it. With weights w and ``n = sqrt(sum w^2)``,

        ``sum w x = (1 - sigma) sum w x0 + sigma n eps``,

    which divided by ``1 - sigma + sigma n`` is a frame at noise level ``sigma n / (1 - sigma + sigma n)``.

    Attributes:
        weights: K rows of F weights, each of sum 1, and all of the same sum of squares.
        positions: in time, one per row, increasing; between whole ones for a mean of two neighbours.
    """

    weights: tuple[tuple[float, ...], ...]
    positions: tuple[float, ...]

    def __post_init__(self) -> None:
        sums = [math.fsum(row) for row in self.weights]
        squares = [math.fsum(w * w for w in row) for row in self.weights]
        uneven = max(squares, default=0.0) - min(squares, default=0.0) > 1e-6
        if len(self.positions) != len(sums) or not sums or any(abs(s - 1) > 1e-6 for s in sums) or uneven:
            raise OptionError(
                f"a mixture with rows of sums {sums}, sums of squares {squares} and {len(self.positions)} positions "
                "has no one noise level; needed: rows of sum 1 and of one sum of squares, a position for each."
            )

    @property
    def noise(self) -> float:
        """n: how much of one frame's noise is left, 0..1."""
        return math.sqrt(math.fsum(w * w for w in self.weights[0]))

    def sigma(self, sigma: float) -> float:
        """Noise level 0..1 of what the expert is given, where the clip's is `sigma`."""
        return sigma * self.noise / self._scale(sigma)

    def of(self, latents: Tensor, sigma: float) -> Tensor:
        """What the expert is given of a clip ``(..., F, H, W)`` at noise level `sigma`: ``(..., K, H, W)``."""
        scale = self._scale(sigma)
        return frames.mix(latents, [[weight / scale for weight in row] for row in self.weights])

    def _scale(self, sigma: float) -> float:
        return 1 - sigma + sigma * self.noise
