"""``interleave``: the kept frames change from step to step, so that every frame has its turn."""

from __future__ import annotations

from halfframe.strategies.interpolate import Interpolate

__all__ = ["Interleave"]


class Interleave(Interpolate):
    """With stride 2, even frames at one step and frame 0 with the odd ones at the next; the others are interpolated."""

    name = "interleave"

    def offset(self, halved: int) -> int:
        """Each of the `stride` positions in turn."""
        return halved % self.stride
