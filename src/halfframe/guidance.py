"""Truncated classifier-free guidance: steps in which the unconditional forward is left out.

With scale s, the guided velocity is ``u + s (c - u)`` of a conditional prediction c and an unconditional one u. In a
truncated step u is not computed. What stands in for it makes the host's own formula give

- ``c`` (mode ``"conditional"``): u := c;
- ``c + (s - 1) d`` (mode ``"reuse-delta"``): u := c - d, with d = c - u of the last step that had both.

Source: CFG truncation, as combined with half-frame generation for Wan2.2.

Truncation leaves out an expert's last steps. Apart from it, u may be computed at every n-th step only; at the steps
between, the guidance difference stands in whatever the mode, because the next steps have guidance again.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from torch import Tensor

from halfframe.errors import OptionError, is_count
from halfframe.strategies.base import Step

__all__ = ["GuidanceMode", "GuidanceState", "GuidanceTruncation"]

GuidanceMode = Literal["conditional", "reuse-delta"]
_MODES: tuple[GuidanceMode, ...] = ("conditional", "reuse-delta")


@dataclass(frozen=True, slots=True)
class GuidanceTruncation:
    """Which steps go without the unconditional forward.

    Attributes:
        steps: the last so many steps of the schedule.
        high_noise_steps: the last so many steps of the high-noise expert.
        mode: what the prediction is there, see the module's text.
        every: of the other steps, each expert's first and every so many after it have the forward; 1 is all of them.

    Raises:
        OptionError: a count that is too small or no integer, or an unknown mode.
    """

    steps: int = 0
    high_noise_steps: int = 0
    mode: GuidanceMode = "conditional"
    every: int = 1

    def __post_init__(self) -> None:
        for name, count, least in (
            ("cfg_truncate_steps", self.steps, 0),
            ("cfg_truncate_high_noise_steps", self.high_noise_steps, 0),
            ("cfg_every", self.every, 1),
        ):
            if not is_count(count, least):
                raise OptionError(f"{name}={count!r} is no number of steps; give an integer of {least} or more.")
        if self.mode not in _MODES:
            raise OptionError(f"cfg_mode={self.mode!r} is unknown; needed: one of {', '.join(map(repr, _MODES))}.")

    def __bool__(self) -> bool:
        return bool(self.steps or self.high_noise_steps or self.every > 1)

    def covers(self, step: Step) -> bool:
        """Whether `step` goes without the unconditional forward."""
        return self.truncates(step) or step.expert_index % self.every != 0

    def truncates(self, step: Step) -> bool:
        """Whether `step` is one of the last steps, where `mode` says what the prediction is."""
        last = step.index >= step.num_steps - self.steps
        last_high = step.expert == "high" and step.expert_index >= step.expert_steps - self.high_noise_steps
        return last or last_high


class GuidanceState:
    """What a run remembers of its guidance: this step's conditional prediction, and the last difference.

    The difference is forgotten at the expert switch, because it is one expert's. A truncated step that has none takes
    the conditional prediction; a step before those makes the forward after all.
    """

    def __init__(self, truncation: GuidanceTruncation) -> None:
        self.truncation = truncation
        self._step: Step | None = None
        self._conditional: Tensor | None = None
        self._delta: Tensor | None = None

    def see(self, step: Step, forward: int, prediction: Tensor) -> None:
        """A forward was made: the first of a step is the conditional one, the second the unconditional one."""
        if not self.truncation:
            return
        if self._step is not None and self._step.expert != step.expert:
            self._delta = None
        self._step = step
        if forward == 0:
            self._conditional = prediction
        elif forward == 1 and self._conditional is not None and self._reuses:
            self._delta = self._conditional - prediction

    def stand_in(self, step: Step, forward: int) -> Tensor | None:
        """What takes the place of the coming forward, ``(..., F, H, W)``; None if it is to be made."""
        if forward != 1 or self._conditional is None or not self.truncation.covers(step):
            return None
        truncated = self.truncation.truncates(step)
        if self._delta is None:
            return self._conditional if truncated else None
        plain = truncated and self.truncation.mode == "conditional"
        return self._conditional if plain else self._conditional - self._delta

    @property
    def delta(self) -> Tensor | None:
        """The guidance difference ``c - u`` that a later step of this expert may reuse; None for none."""
        return self._delta

    @property
    def _reuses(self) -> bool:
        return self.truncation.mode == "reuse-delta" or self.truncation.every > 1
