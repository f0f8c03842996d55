"""``merge``: the expert sees means of neighbouring frames, so that no frame's noise goes unseen."""

from __future__ import annotations

import math
from collections.abc import Sequence

from torch import Tensor

from halfframe import frames
from halfframe.strategies.base import Step
from halfframe.strategies.interleave import Interleave
from halfframe.strategies.mixture import Mixture

__all__ = ["Merge"]


class Merge(Interleave):
    """With stride 2, frames 0 and 1, 2 and 3, ... at one step, frames 1 and 2, 3 and 4, ... at the next.

    Where frames are left out, what their noise would have said of the clip is lost to the expert. A mean of two has
    half the variance of their noise, and is to the expert a frame of a clip at a lower noise level, at a time between
    theirs (see `halfframe.strategies.mixture.Mixture`). What it shows is interpolated to all frames.

    A mean whose noise level would be under the boundary, where the high-noise expert was never trained, is weighted
    towards the first of its frames, so that it is at the boundary. Right before the switch that leaves the one frame,
    as `halfframe.strategies.interleave.Interleave` has it.

    Where conditions go with the frames, in image-to-video, there are no means, because a mean of conditions is none
    that an expert knows: such a clip is made as `Interleave` makes it.
    """

    name = "merge"

    def select(self, step: Step) -> Sequence[int] | None:
        """The first frame of each mean."""
        if step.conditioned:
            return super().select(step)
        if self.stride == 1 or step.sigma <= 0 or not self._in_window(step):
            return None
        count, stride = step.num_frames, self.stride
        last = max(0, count - stride)
        starts = sorted({0, *range((step.index - self.full_start) % stride, last + 1, stride), last})
        return None if len(starts) == count else starts

    def mixture(self, step: Step) -> Mixture | None:
        """Means of `stride` frames each; the outermost ones overlap with their neighbours."""
        starts = None if step.conditioned else self.select(step)
        if starts is None:
            return None
        size = min(self.stride, step.num_frames)
        first = _weight_of_the_first(size, _least_noise(step))
        others = (1 - first) / (size - 1)
        ahead = others * size * (size - 1) / 2  # how far the middle of the weights is behind the first frame
        rows = [
            tuple(
                first if position == start else others if start < position < start + size else 0.0
                for position in range(step.num_frames)
            )
            for start in starts
        ]
        contiguous = self.positions == "contiguous"
        return Mixture(tuple(rows), tuple(float(k) if contiguous else start + ahead for k, start in enumerate(starts)))

    def fill(self, prediction: Tensor, kept: Sequence[int], step: Step, forward: int, latents: Tensor) -> Tensor:
        """Velocity of all frames, none of which was computed as it is.

        What the means show is linear between their places in time, and held beyond the outermost.
        """
        mixture = self.mixture(step)
        if mixture is None:
            return super().fill(prediction, kept, step, forward, latents)
        x = latents.float()
        x0 = mixture.of(x, step.sigma) - mixture.sigma(step.sigma) * prediction.float()
        places = [math.fsum(w * position for position, w in enumerate(row)) for row in mixture.weights]
        shown = frames.interpolate_at(x0, places, step.num_frames)
        return ((x - shown) / step.sigma).to(prediction.dtype)


def _least_noise(step: Step) -> float:
    """How much of a frame's noise a mean must keep (`Mixture.noise`) to be on the side of its expert; 0 for any."""
    bound = step.boundary / 1000 if step.expert == "high" else 0.0
    if bound >= 1:
        return 1.0
    return min(1.0, bound * (1 - step.sigma) / (step.sigma * (1 - bound)))


def _weight_of_the_first(size: int, noise: float) -> float:
    """That of the first of `size` frames whose others share the rest evenly; at least an even share.

    It makes the root of the sum of squares `noise`, where an even mean has less.
    """
    excess = max(0.0, size * noise * noise - 1)
    return (1 + math.sqrt((size - 1) * excess)) / size
