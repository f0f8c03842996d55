"""``own-noise``: kept frames are shown again by the skipped ones, each under its own noise."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from halfframe import frames
from halfframe.strategies.base import Step
from halfframe.strategies.denoised import Denoised

__all__ = ["OwnNoise"]


class OwnNoise(Denoised):
    """Duplicates what frames show, not their noise: x0 of a skipped frame is that of the kept frame before it."""

    name = "own-noise"

    def complete(self, x0: Tensor, kept: Sequence[int], step: Step, forward: int) -> Tensor:
        """Each frame takes the x0 of the kept frame at or before it."""
        return frames.hold(x0, kept, step.num_frames)
