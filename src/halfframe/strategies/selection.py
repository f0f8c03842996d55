"""``own-noise``, ``interpolate`` and ``interleave``: some frames are computed, and the others are filled from them."""

from __future__ import annotations

from typing import ClassVar

from halfframe.sampling.frame_map import Between, FrameMap
from halfframe.sampling.strategy import Step
from halfframe.strategies.windowed import Windowed

__all__ = ["Interleave", "Interpolate", "OwnNoise"]


class Interpolate(Windowed):
    """Computes the same frames at every step, and interpolates the content of the others between them."""

    name = "interpolate"
    between: ClassVar[Between] = "linear"

    def frame_map(self, step: Step) -> FrameMap:
        """Frame 0, one of `stride` frames, and frames with their own conditioning."""
        return self._selected(step, self.name)

    def offset(self, step: Step) -> int:
        """Position of the first computed frame besides frame 0; less than `stride`."""
        return 0

    def _selected(self, step: Step, name: str) -> FrameMap:
        kept = {0, *range(self.offset(step), step.num_frames, self.stride), *step.conditioning_frames}
        label = f"{name}:{self.stride}"
        between, positions = self.between, self.positions
        return FrameMap.select(sorted(kept), step.num_frames, between=between, positions=positions, label=label)


class OwnNoise(Interpolate):
    """Computes the same frames at every step; the others copy the content of the one before, with their own noise."""

    name = "own-noise"
    between = "hold"


class Interleave(Interpolate):
    """Computes different frames at each step, so that every frame has its turn, and interpolates the others.

    With stride 2, it computes the even frames at one step, and frame 0 and the odd frames at the next.
    """

    name = "interleave"

    def offset(self, step: Step) -> int:
        """The `stride` positions in turn, one per step."""
        return (step.index - self.full_start) % self.stride
