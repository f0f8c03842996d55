"""What the strategies beyond duplication share: every frame keeps its own noise, skipped frames get a made-up x0.

The expert's velocity on the kept frames says what they show, ``x0 = x - sigma v``. What the skipped frames show is made
up from that, and turned back into a velocity, ``v = (x - x0) / sigma``. So the solver sees full-length latents and a
velocity for each frame throughout, and nothing happens at the expert switch.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal, get_args

from torch import Tensor

from halfframe import frames
from halfframe.errors import OptionError, is_count
from halfframe.strategies.base import Step, Strategy

__all__ = ["Denoised", "Positions", "Until"]

Positions = Literal["true", "contiguous"]
Until = Literal["switch", "end"]
"""Where the window ends, beside a number of steps."""


class Denoised(Strategy):
    """Base of the strategies that make up the x0 of skipped frames; `complete` is what they differ in.

    Args:
        stride: keep one of so many latent frames, and frame 0; 1 keeps all.
        full_start: so many steps at the start compute every frame.
        full_end: so many steps at the end of the window compute every frame.
        until: where the window ends, at the expert ``"switch"`` (the source's), at the ``"end"`` of the schedule, or
            after so many steps of it, at the switch at the latest.
        positions: kept frames sit at their ``"true"`` temporal positions, or are ``"contiguous"`` as in the source.

    Raises:
        OptionError: an option that is none of these.
    """

    sees_pinned = True

    def __init__(
        self,
        *,
        stride: int = 2,
        full_start: int = 0,
        full_end: int = 0,
        until: Until | int = "switch",
        positions: Positions = "true",
    ) -> None:
        for name, value, least in (("stride", stride, 1), ("full_start", full_start, 0), ("full_end", full_end, 0)):
            if not is_count(value, least):
                raise OptionError(f"{name}={value!r} is no such number; give an integer of {least} or more.")
        if not is_count(until, 1):
            _check_word("until", until, Until, " or a number of steps, 1 or more")
        _check_word("positions", positions, Positions)
        self.stride = stride
        self.full_start = full_start
        self.full_end = full_end
        self.until = until
        self.positions = positions

    def select(self, step: Step) -> Sequence[int] | None:
        """Frame 0 and one of `stride` frames, in the window; all of them outside."""
        if not self._in_window(step):
            return None
        kept = sorted({0, *range(self.offset(step.index - self.full_start), step.num_frames, self.stride)})
        return None if len(kept) == step.num_frames else kept

    def offset(self, halved: int) -> int:
        """Position of the first kept frame, beside frame 0, after `halved` steps of the window; less than `stride`."""
        return 0

    def true_positions(self, step: Step) -> bool:
        """As the option `positions` says."""
        return self.positions == "true"

    def fill(self, prediction: Tensor, kept: Sequence[int], step: Step, forward: int, latents: Tensor) -> Tensor:
        """Velocity of all frames: the expert's on the kept ones, ``(x - x0) / sigma`` with the made-up x0 elsewhere."""
        if len(kept) == step.num_frames:
            return prediction
        if step.sigma <= 0:  # nothing is noise any more, so a velocity says nothing of x0
            return super().fill(prediction, kept, step, forward, latents)
        x = latents.float()
        x0 = frames.take(x, kept) - step.sigma * prediction.float()
        velocity = (x - self.complete(x0, kept, step, forward)) / step.sigma
        return frames.put(velocity.to(prediction.dtype), kept, prediction)

    def complete(self, x0: Tensor, kept: Sequence[int], step: Step, forward: int) -> Tensor:
        """What all frames show, ``(..., F, H, W)``, from what the kept ones do, ``(..., len(kept), H, W)``, float32.

        Asked after every forward that left frames out.
        """
        raise NotImplementedError

    def _in_window(self, step: Step) -> bool:
        if step.index < self.full_start:
            return False
        if self.until == "end":
            return step.index < step.num_steps - self.full_end
        end = step.expert_steps if self.until == "switch" else min(self.until, step.expert_steps)
        return step.expert == "high" and step.expert_index < end - self.full_end


def _check_word(name: str, word: object, words: Any, more: str = "") -> None:
    if word not in get_args(words):
        raise OptionError(f"{name}={word!r} is unknown; needed: {' or '.join(map(repr, get_args(words)))}{more}.")
