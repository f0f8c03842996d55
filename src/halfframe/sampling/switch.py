"""The expert switch: what becomes of the carried clip, and of what the scheduler remembers of it, once per run.

The clip is turned into the one that goes on before the low-noise expert's first call, and in that step's scheduler call
the scheduler's history follows it: through the same function where that is linear, else the scheduler starts afresh.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence

import pluggy
import torch
from torch import Tensor

from halfframe.errors import HalfframeError
from halfframe.sampling.events import Boundary
from halfframe.sampling.forward import checked, finite
from halfframe.sampling.frames import TIME_DIM, put, same, take
from halfframe.sampling.host import ForwardPass
from halfframe.sampling.scheduler import Scheduler, map_history, restart
from halfframe.sampling.strategy import Step

__all__ = ["ExpertSwitch"]

_logger = logging.getLogger(__name__)


class ExpertSwitch:
    """One run's switch.

    Args:
        at_switch: the strategy's; makes of a full-length clip ``(..., F, H, W)`` the one that goes on.
        conditioning: positions of frames with a condition of their own, of as many as there are; those stay.
        named: who does so, for messages.
        hooks: are handed the `Boundary`.
    """

    def __init__(
        self,
        at_switch: Callable[[Tensor], Tensor],
        conditioning: Callable[[int], Sequence[int]],
        named: str,
        hooks: pluggy.HookRelay,
    ) -> None:
        self._at_switch = at_switch
        self._conditioning = conditioning
        self._named = named
        self._hooks = hooks
        self._carried: Tensor | None = None
        self._rewritten = False
        self._history_rule: Callable[[Tensor], None] | None = None
        self.done = False
        self.step: Step | None = None

    def watch(self, sample: Tensor | None) -> None:
        """The scheduler's latest sample, if the switch comes next: hosts may cast it for the expert."""
        self._carried = sample

    def make(
        self,
        latents: Tensor,
        step: Step | None,
        sigma: float,
        last: ForwardPass | None,
        length_after: int,
        scheduler: Scheduler | None = None,
    ) -> Tensor:
        """Turn the carried clip into the one that the low-noise expert goes on with.

        Args:
            latents: what the expert is about to be called with, or the last sample, ``(..., F, H, W)``.
            step: the low-noise expert's first step; None where the schedule ends before it.
            sigma: noise level 0..1 of the latents.
            last: the high-noise expert's last forward pass; None if it made none.
            length_after: tokens of the full clip.
            scheduler: the run's scheduler, if the host has one whose history must follow.

        Returns:
            The latents to go on with, ``(..., F, H, W)``.
        """
        self.done = True
        self.step = step
        latents = self._exactly(latents)
        expanded = self._expand(latents)
        boundary = Boundary(
            step=step,
            sigma=sigma,
            frame_map=None if last is None or last.bound is None else last.bound.frame_map,
            before=latents,
            expanded=expanded,
            sequence_length_before=length_after if last is None else last.sequence_length,
            sequence_length_after=length_after,
        )
        before_hooks = expanded.clone()
        self._hooks.halfframe_boundary(boundary=boundary)
        self._rewritten = boundary.rewritten or not same(boundary.latents, before_hooks)  # or edited in place
        if scheduler is not None and self._rewritten:
            self._history_rule = lambda sample: self._restart(scheduler, sample)
        elif scheduler is not None and expanded is not latents:
            self._history_rule = lambda sample: self._carry(scheduler, latents.to(sample.dtype).reshape(sample.shape))
        return boundary.latents

    def sample_for(self, replacement: Tensor, sample: Tensor) -> Tensor:
        """What the scheduler goes on from where the host's `sample` was replaced by `replacement` in the expert's call.

        The expert may be given less precision than the scheduler has; then the scheduler's own sample is expanded.
        """
        exact = self._rewritten or torch.finfo(replacement.dtype).eps <= torch.finfo(sample.dtype).eps
        return replacement.to(sample.dtype).reshape(sample.shape) if exact else self._expand(sample)

    def settle_history(self, sample: Tensor) -> None:
        """Make the scheduler's history that of the clip that goes on; once, before its first step with that clip."""
        rule, self._history_rule = self._history_rule, None
        if rule is not None:
            rule(sample)

    def close(self) -> None:
        """Let go of every tensor."""
        self._carried = self._history_rule = None

    def _expand(self, latents: Tensor) -> Tensor:
        """The clip that goes on, as the strategy makes it; the same object if nothing changes."""
        given = latents.clone()  # a strategy may work in place
        result = self._at_switch(given)
        what = f"what {self._named} made of the latents at the switch"
        checked(result, tuple(latents.shape), latents, what)
        if latents.isfinite().all():
            finite(result, what)
        if result is given and same(given, latents):
            return latents
        kept = self._conditioning(latents.shape[TIME_DIM])
        return put(result, kept, take(latents, kept)) if kept else result

    def _exactly(self, latents: Tensor) -> Tensor:
        """The clip that `latents` was cast from for the expert, in the scheduler's precision, if still the same."""
        carried = self._carried
        if carried is None or carried.numel() != latents.numel():
            return latents
        carried = carried.reshape(latents.shape)
        return carried if same(carried.to(latents.dtype), latents) else latents

    def _carry(self, scheduler: Scheduler, before: Tensor) -> None:
        if not map_history(scheduler, before, self._expand):
            _logger.debug("%s is not linear in the latents: the scheduler starts afresh at the switch", self._named)
            self._restart(scheduler, before)

    def _restart(self, scheduler: Scheduler, sample: Tensor) -> None:
        if not restart(scheduler, sample):
            raise HalfframeError(
                f"the latents were rewritten at the expert switch, and {type(scheduler).__name__} cannot start "
                "afresh within a schedule; use UniPC, DPM-Solver++ or Euler, or a strategy linear in the latents."
            )
