"""``interpolate``: skipped frames show what lies between their kept neighbours, under their own noise."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from halfframe import frames
from halfframe.strategies.base import Step
from halfframe.strategies.denoised import Denoised

__all__ = ["Interpolate"]


class Interpolate(Denoised):
    """The same frames are kept at every step; x0 of the others is linear in time between them."""

    name = "interpolate"

    def complete(self, x0: Tensor, kept: Sequence[int], step: Step, forward: int) -> Tensor:
        """Linear between kept frames, held beyond the last."""
        return frames.interpolate(x0, kept, step.num_frames)
