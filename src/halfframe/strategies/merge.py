"""``merge``: the expert gets means of neighbouring frames, so that it sees the noise of every frame."""

from __future__ import annotations

import math

from halfframe.sampling.frame_map import FrameMap
from halfframe.sampling.strategy import Step
from halfframe.strategies.selection import Interleave

__all__ = ["Merge"]


class Merge(Interleave):
    """Computes means of neighbouring frames, different ones at each step, and interpolates all frames from them.

    With stride 2, these are frames 0 and 1, 2 and 3, ... at one step, and frames 1 and 2, 3 and 4, ... at the next.

    The expert never sees the noise of skipped frames. A mean of two frames has half the variance of their noise. The
    expert takes it as a frame at a lower noise level, at a time between theirs (`FrameMap`). The content of the means
    is interpolated to all frames.

    The high-noise expert was never trained below the boundary. A mean that would fall below it is weighted towards its
    first frame until it is at the boundary. Right before the switch only that frame is left, as in `Interleave`.

    In image-to-video it computes single frames, as `Interleave` does: no expert was trained on averaged conditioning.
    """

    name = "merge"

    def frame_map(self, step: Step) -> FrameMap:
        """Means of `stride` frames each; the outermost ones overlap with their neighbours."""
        if step.conditioned or step.conditioning_frames:
            return self._selected(step, Interleave.name)
        count = step.num_frames
        size = min(self.stride, count)
        last = count - size
        starts = sorted({0, *range(self.offset(step), last + 1, self.stride), last})
        first = _weight_of_the_first(size, _least_noise(step))
        others = (1 - first) / (size - 1)
        rows = [
            [
                first if position == start else others if start < position < start + size else 0.0
                for position in range(count)
            ]
            for start in starts
        ]
        return FrameMap.mean(rows, positions=self.positions, label=f"merge:{self.stride}")


def _least_noise(step: Step) -> float:
    """How much of a frame's noise a mean must keep (`FrameMap.noise`) to be on the side of its expert; 0 for any."""
    bound = step.boundary / 1000 if step.expert == "high" else 0.0
    if step.sigma >= 1:
        return 0.0  # a mean of noise alone is noise alone
    if bound >= 1:
        return 1.0
    return min(1.0, bound * (1 - step.sigma) / (step.sigma * (1 - bound)))


def _weight_of_the_first(size: int, noise: float) -> float:
    """That of the first of `size` frames whose others share the rest evenly; at least an even share.

    It makes the root of the sum of squares `noise`, where an even mean has less.
    """
    excess = max(0.0, size * noise * noise - 1)
    return (1 + math.sqrt((size - 1) * excess)) / size
