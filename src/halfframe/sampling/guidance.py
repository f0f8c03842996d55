"""Classifier-free guidance without its unconditional forward pass.

With scale s, the guided velocity is ``u + s (c - u)`` of a conditional prediction c and an unconditional one u. If u
is not computed, a substitute for it makes the host's own formula give

- ``c`` (``"conditional"``): u := c;
- ``c + (s - 1) d`` (`Delta`): u := c - d, with d the weighted sum of c - u of the last steps that computed both.

Source: CFG truncation, as combined with half-frame generation for Wan2.2.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, Protocol, TypeAlias, runtime_checkable

from torch import Tensor

from halfframe.errors import OptionError, is_count, one_of
from halfframe.sampling.strategy import Expert, Step
from halfframe.sampling.weights import MOST_WEIGHTS, checked_weights, remembering, weighted_sum, weights_text

__all__ = ["Delta", "Guidance", "GuidanceMode", "GuidancePlan", "GuidanceRule", "GuidanceState", "settled", "suffix_of"]

GuidanceMode = Literal["conditional", "delta"]


@dataclass(frozen=True, slots=True)
class Delta:
    """A step without its unconditional pass: guidance differences of earlier steps of the same expert stand in.

    Attributes:
        weights: of those differences, latest first, 1 to 4; ``(1.0,)`` reuses the last one unchanged.
        otherwise: what the step computes if fewer differences are known than there are weights.

    Raises:
        OptionError: `weights` are not 1 to 4 finite numbers.
    """

    weights: tuple[float, ...] = (1.0,)
    otherwise: Literal["conditional", "both"] = "conditional"

    def __post_init__(self) -> None:
        object.__setattr__(self, "weights", checked_weights("Delta", self.weights))


GuidanceRule: TypeAlias = Literal["both", "conditional"] | Delta
"""What a step computes of guidance."""


def settled(rule: GuidanceRule, known: int) -> GuidanceRule:
    """`rule` where so many differences are `known`: a `Delta` only if it has as many as it needs."""
    return rule.otherwise if isinstance(rule, Delta) and known < len(rule.weights) else rule


def suffix_of(rule: GuidanceRule) -> str:
    """What reports and recipes add to a move: nothing, ``+cond``, ``+delta``, ``+delta:1.47,-0.58``, ..."""
    if isinstance(rule, Delta):
        return f"+delta:{weights_text(rule.weights)}".rstrip(":")
    return "+cond" if rule == "conditional" else ""


@runtime_checkable
class GuidancePlan(Protocol):
    """Says for each step whether the unconditional pass is computed."""

    def __bool__(self) -> bool:
        """Whether any step may skip it."""
        ...

    def at(self, step: Step) -> GuidanceRule:
        """The rule for `step`."""
        ...


@dataclass(frozen=True, slots=True)
class Guidance:
    """Skips the unconditional forward pass on some steps.

    Attributes:
        skip_last: skips it on the last N steps of the schedule.
        skip_last_high: skips it on the last N steps of the high-noise expert.
        every: on the other steps, computes it on each expert's first step and every N-th after it, and reuses the last
            guidance difference in between. 1 computes it on every step.
        mode: what the prediction is on the last steps: ``"conditional"``, or ``"delta"``, which reuses the last
            guidance difference of the same expert if there is one.

    Raises:
        OptionError: a count that is too small or not an integer, or an unknown mode.
    """

    skip_last: int = 0
    skip_last_high: int = 0
    every: int = 1
    mode: GuidanceMode = "conditional"

    def __post_init__(self) -> None:
        for name, least in (("skip_last", 0), ("skip_last_high", 0), ("every", 1)):
            if not is_count(getattr(self, name), least):
                raise OptionError(f"Guidance: {name} must be an integer >= {least}, got {getattr(self, name)!r}.")
        one_of("Guidance: mode", self.mode, GuidanceMode)

    def __bool__(self) -> bool:
        return bool(self.skip_last or self.skip_last_high or self.every > 1)

    def at(self, step: Step) -> GuidanceRule:
        """Whether `step` computes the unconditional pass, and what replaces it if not."""
        last = step.index >= step.num_steps - self.skip_last
        last_high = step.expert == "high" and step.expert_index >= step.expert_steps - self.skip_last_high
        if last or last_high:
            return Delta() if self.mode == "delta" else "conditional"
        return Delta(otherwise="both") if step.expert_index % self.every else "both"


class GuidanceState:
    """What a run remembers of its guidance: this step's conditional prediction, and the last differences.

    The differences are forgotten at the expert switch, because they are one expert's.

    Attributes:
        label: how the latest stand-in is named in reports and recipes, see `suffix_of`.
    """

    def __init__(self, plan: GuidancePlan) -> None:
        self.label = ""
        self._plan = plan
        self._expert: Expert | None = None
        self._conditional: Tensor | None = None
        self._deltas: list[tuple[int, Tensor]] = []

    def see(self, step: Step, number: int, velocity: Tensor, computed: bool = True) -> None:
        """A pass was made: the first of a step is the conditional one, the second the unconditional one.

        Where it was not `computed` but reused, its difference is no new one.
        """
        if not self._plan:
            return
        if self._expert != step.expert:
            self._deltas = []
        self._expert = step.expert
        if number == 0:
            self._conditional = velocity
        elif number == 1 and computed and self._conditional is not None:
            delta = self._conditional - velocity
            self._deltas = remembering(self._deltas, step.index, delta, MOST_WEIGHTS)

    def rule(self, step: Step) -> GuidanceRule:
        """What `step` computes, given what is remembered."""
        known = len(self._deltas) if self._expert == step.expert else 0
        return settled(self._plan.at(step), known) if self._plan else "both"

    def stand_in(self, step: Step, number: int) -> Tensor | None:
        """What takes the place of the coming pass, ``(..., F, H, W)``; None if it is to be computed."""
        rule = self.rule(step)
        if number != 1 or rule == "both" or self._conditional is None:
            return None
        self.label = suffix_of(rule)
        delta = weighted_sum(rule.weights, self._deltas) if isinstance(rule, Delta) else None
        return self._conditional if delta is None else self._conditional - delta.to(self._conditional.dtype)

    def close(self) -> None:
        """Let go of every tensor."""
        self._conditional, self._deltas = None, []
