"""``own-noise``, ``interpolate`` and ``interleave``: some frames are computed, what they show fills in the others."""

from __future__ import annotations

from typing import ClassVar

from halfframe.sampling.frame_map import Between, FrameMap
from halfframe.sampling.strategy import Step
from halfframe.strategies.windowed import Windowed

__all__ = ["Interleave", "Interpolate", "OwnNoise"]


class Interpolate(Windowed):
    """Computes the same frames at every step; what the others show is interpolated between them."""

    name = "interpolate"
    between: ClassVar[Between] = "linear"

    def frame_map(self, step: Step) -> FrameMap:
        """Frame 0, one of `stride` frames, and those with a condition of their own."""
        return self._selected(step, self.name)

    def offset(self, step: Step) -> int:
        """Position of the first computed frame beside frame 0; less than `stride`."""
        return 0

    def _selected(self, step: Step, name: str) -> FrameMap:
        kept = {0, *range(self.offset(step), step.num_frames, self.stride), *step.conditioning_frames}
        label = f"{name}:{self.stride}"
        between, positions = self.between, self.positions
        return FrameMap.select(sorted(kept), step.num_frames, between=between, positions=positions, label=label)


class OwnNoise(Interpolate):
    """Computes the same frames at every step; the others show what the one before them does, under their own noise."""

    name = "own-noise"
    between = "hold"


class Interleave(Interpolate):
    """Computes other frames at each step, so that every frame has its turn; the others are interpolated.

    With stride 2, even frames at one step and frame 0 with the odd ones at the next.
    """

    name = "interleave"

    def offset(self, step: Step) -> int:
        """Each of the `stride` positions in turn."""
        return (step.index - self.full_start) % self.stride
