"""What a session is going to take, from single forward passes, and how many steps there is time for."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from halfframe.compare.equal_cost import nearest
from halfframe.compare.generators import Generate
from halfframe.compare.results import Comparison, Results
from halfframe.compare.runs import Kind, by_kind, choose_steps
from halfframe.errors import HalfframeError, OptionError

__all__ = ["Ahead", "Budget", "NoTimeError", "shortened"]

_MARGIN = 1.05
"""How much longer than expected runs may take."""


@dataclass(frozen=True, slots=True)
class Budget:
    """How long a session may take.

    Attributes:
        seconds: as many steps are run as these have room for; None for all.
        until: no run is begun that will not be over at this time of `time.monotonic`; None for no end.
        run_steps: steps to run, whatever there is time for.
    """

    seconds: float | None = None
    until: float | None = None
    run_steps: int | None = None


class NoTimeError(HalfframeError):
    """The next run would not be over in time."""


class Ahead:
    """The runs of a session as they can be foreseen.

    Args:
        host: the pipeline, which must be able to plan.
        comparison: what is known of it.
        steps: of the baseline.
        runs: of each variant.
        equal_cost: whether plain variants with fewer steps are going to be added.
    """

    def __init__(
        self, host: Generate, comparison: Comparison, budget: Budget, steps: int, runs: int, equal_cost: bool
    ) -> None:
        self._host = host
        self._comparison = comparison
        self._budget = budget
        self._steps = steps
        self._runs = runs
        self._equal_cost = equal_cost

    def kinds(self, results: Results, steps: int) -> dict[Kind, int]:
        """Forward passes in a run of `steps` steps."""
        assert self._host.plan is not None
        options = shortened(results.variant.options, results.steps or steps, steps)
        return by_kind(self._host.plan(options, steps).to_dict())

    def can_shorten(self, results: Results) -> bool:
        """Whether a variant can be run in the steps that are run; a recipe is for its own number alone."""
        return self._fits(results, self._comparison.run_steps or self._steps)

    def _fits(self, results: Results, steps: int) -> bool:
        try:
            return bool(self.kinds(results, results.variant.steps or steps))
        except HalfframeError:
            return False

    def estimate(self, results: Results, steps: int) -> float:
        """Seconds of a run."""
        runs, alone = self._comparison.baseline.runs, self._comparison.alone
        total = runs[0].rest if runs else self._comparison.rest
        for (_, frames), count in self.kinds(results, steps).items():
            larger = [kind for kind in alone if kind[1] >= frames]
            total += count * alone[min(larger or alone, key=lambda kind: kind[1])]
        return total

    def require_time(self, results: Results, steps: int) -> None:
        """Raise `NoTimeError` where a run would not be over in time; in all processes or in none."""
        until = self._budget.until
        if until is not None:
            late = time.monotonic() + _MARGIN * self.estimate(results, steps) > until
            if self._host.gather(late)[0]:
                raise NoTimeError("there is no time for another run.")

    def decide(self, tell: Callable[[str], None]) -> None:
        """How many steps are run: as many as were asked for, as earlier, or as there is time for.

        Raises:
            OptionError: the results so far are of another number of steps.
            HalfframeError: no forward pass was timed.
        """
        comparison, asked = self._comparison, self._budget.run_steps
        if not comparison.alone:
            raise HalfframeError("no forward pass was timed: the warm-up failed, or what `spots` names is not called.")
        if comparison.run_steps is None:
            comparison.run_steps = asked or self._affordable()
        elif asked not in (None, comparison.run_steps):
            raise OptionError(
                f"the results so far are of runs of {comparison.run_steps} steps, not of {asked}; give the same number "
                "to go on, or another folder."
            )
        if comparison.run_steps != self._steps:
            high, low = self._split(comparison.run_steps)
            tell(f"{comparison.run_steps} steps are run ({high} + {low}), and extrapolated to {self._steps}")
        tell(f"about {self._cost(comparison.run_steps):.0f} s for all of it")

    def _split(self, steps: int) -> tuple[int, int]:
        """How many of `steps` steps each expert has."""
        assert self._host.plan is not None
        report = self._host.plan(None, steps)
        return report.high.steps, report.low.steps

    def _affordable(self) -> int:
        if self._budget.seconds is None:
            return self._steps
        fitting = [steps for steps in range(1, self._steps + 1) if self._cost(steps) <= self._budget.seconds]
        return choose_steps(self._steps, max(fitting, default=1), self._split)

    def _cost(self, steps: int) -> float:
        """Seconds of all runs, if `steps` are run."""
        rows = [results for results in self._comparison.rows if self._fits(results, steps)]
        costs = [self.estimate(results, results.variant.steps or steps) for results in rows]
        if steps == self._steps and self._equal_cost:  # only then are fewer steps run, and not had from the baseline
            plain = [self.estimate(self._comparison.baseline, fewer) for fewer in range(1, steps + 1)]
            rivals = {nearest(cost, plain) for cost, row in zip(costs, rows, strict=True) if row.options is not None}
            costs += rivals - {plain[-1]}
        return _MARGIN * self._runs * sum(costs)


def shortened(options: Mapping[str, Any] | None, target: int, steps: int) -> dict[str, Any] | None:
    """`options` for a run of `steps` steps that stands for one of `target`; what is truncated at all stays so."""
    if options is None or steps == target or options.get("guidance") is None:
        return None if options is None else dict(options)
    guidance = options["guidance"]
    last, last_high = (
        max(1, round(count * steps / target)) if count else 0 for count in (guidance.skip_last, guidance.skip_last_high)
    )
    return {**options, "guidance": dataclasses.replace(guidance, skip_last=last, skip_last_high=last_high)}
