"""What the strategies beyond duplication share: a stride, a window of steps, and every frame keeps its own noise.

The expert's velocity says what the computed frames show; the others are filled in from that, and turned back
into a velocity under each frame's own noise. So nothing happens at the expert switch.
"""

from __future__ import annotations

import inspect
from typing import Literal

from halfframe.errors import OptionError, is_count, one_of
from halfframe.sampling.frame_map import FrameMap, Positions
from halfframe.sampling.strategy import Move, Step, Strategy

__all__ = ["Until", "Windowed"]

Until = Literal["switch", "end"]
"""Where the window ends, beside a number of steps or a noise level."""


class Windowed(Strategy):
    """Base class of the strategies with a window of steps; they differ in `frame_map`.

    Args:
        stride: computes one of N latent frames; 1 computes all.
        full_start: computes every frame on the first N steps.
        full_end: computes every frame on the last N steps of the window.
        until: where the window ends: at the expert ``"switch"`` (as in the source), at the ``"end"`` of the schedule,
            after N steps, or below a noise level between 0 and 1 such as ``0.99``. The last two end it at the switch at
            the latest. With a noise level, the expert's first step is always inside.
        positions: computed frames keep their ``"true"`` temporal positions, or get ``"contiguous"`` ones as in the
            source.

    Raises:
        OptionError: an option with an unusable value.
    """

    def __init__(
        self,
        *,
        stride: int = 2,
        full_start: int = 0,
        full_end: int = 0,
        until: Until | float = "switch",
        positions: Positions = "true",
    ) -> None:
        for name, value, least in (("stride", stride, 1), ("full_start", full_start, 0), ("full_end", full_end, 0)):
            if not is_count(value, least):
                raise OptionError(f"{name} must be an integer >= {least}, got {value!r}.")
        level = isinstance(until, float) and 0 < until < 1
        if not level and not is_count(until, 1):
            one_of("until", until, Until, ", a number of steps >= 1 or a noise level between 0 and 1")
        if level and full_end:
            raise OptionError(
                f"full_end={full_end} counts from the end of a window whose steps are known; until={until} is a noise "
                "level. Give until a number of steps, or leave full_end out."
            )
        one_of("positions", positions, Positions)
        self.stride = stride
        self.full_start = full_start
        self.full_end = full_end
        self.until = until
        self.positions = positions

    def __str__(self) -> str:
        options = inspect.signature(Windowed.__init__).parameters.values()
        given = [f"{p.name}={getattr(self, p.name)}" for p in options if getattr(self, p.name, p.default) != p.default]
        return self.name + (":" + ",".join(given) if given else "")

    def move(self, step: Step) -> Move:
        """`frame_map` within the window, all frames outside."""
        if self.stride == 1 or step.num_frames == 1 or step.sigma <= 0 or not self._in_window(step):
            return None
        return self.frame_map(step)

    def frame_map(self, step: Step) -> FrameMap:
        """The frame map of a step inside the window."""
        raise NotImplementedError

    def _in_window(self, step: Step) -> bool:
        if step.index < self.full_start:
            return False
        if self.until == "end":
            return step.index < step.num_steps - self.full_end
        if step.expert != "high":
            return False
        if isinstance(self.until, float):
            return step.expert_index == 0 or step.sigma >= self.until
        end = step.expert_steps if self.until == "switch" else min(self.until, step.expert_steps)
        return step.expert_index < end - self.full_end
