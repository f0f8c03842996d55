"""What is compared, and what comes of it: variants, their runs, and the whole comparison."""

from __future__ import annotations

import math
import statistics
import textwrap
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from halfframe.compare.quality import Quality
from halfframe.compare.runs import Kind, Run, by_kind, means
from halfframe.errors import HalfframeError, OptionError
from halfframe.sampling.strategy import Strategy

__all__ = ["Comparison", "ComparisonError", "Results", "Trial", "Variant", "describe", "fewer_steps"]


@dataclass(frozen=True, slots=True)
class Variant:
    """One way to make the same clips.

    Attributes:
        name: for tables, pictures and messages.
        options: of `halfframe.enabled`, e.g. ``{"strategy": "self-duplicate"}``; None for the pipeline as it is.
        steps: steps; None for as many as the baseline.
        note: a remark for the table.
    """

    name: str
    options: Mapping[str, Any] | None = None
    steps: int | None = None
    note: str = ""

    def __post_init__(self) -> None:
        if not self.name:
            raise OptionError("a variant has an empty name; give it one, it heads its row.")
        if self.steps is not None and self.steps < 1:
            raise OptionError(f"variant {self.name!r} has steps={self.steps}; needed: 1 or more.")


def fewer_steps(steps: int, note: str = "") -> Variant:
    """The plain pipeline with another number of steps: the honest rival of every acceleration."""
    return Variant(f"fewer steps, {steps}", None, steps, note)


@dataclass(frozen=True, slots=True)
class Trial:
    """One finished clip.

    Attributes:
        prompt: what was asked for; empty if it is not known.
        seed: of its noise; None if it is not known.
        runs: that made it, in their order; none for a clip that was read from a file.
        shape: of the video, ``(F, H, W, 3)``; empty where it was not looked at.
        duplication_ratio: see `halfframe.compare.video_duplication_ratio`.
        quality: against the baseline's clip of the same prompt and seed; None for the baseline itself.
        report: halfframe's report of the first run as plain data; None for a plain one.
    """

    prompt: str
    seed: int | None
    runs: tuple[Run, ...] = ()
    shape: tuple[int, ...] = ()
    duplication_ratio: float | None = None
    quality: Quality | None = None
    report: Mapping[str, Any] | None = None


@dataclass(slots=True)
class Results:
    """Everything known of one variant so far.

    Attributes:
        variant: what was asked for.
        steps: that it is about; a run of fewer is extrapolated to them.
        trials: a finished clip each.
        error: why it stopped, if it did.
        plan: what a run of `steps` is going to compute, as halfframe's report; None where that cannot be told.
    """

    variant: Variant
    steps: int | None
    trials: list[Trial] = field(default_factory=list)
    error: str = ""
    plan: Mapping[str, Any] | None = None

    @property
    def runs(self) -> list[Run]:
        """Of every trial."""
        return [run for trial in self.trials for run in trial.runs]

    @property
    def reports(self) -> list[Mapping[str, Any]]:
        """Of every trial that has one."""
        return [trial.report for trial in self.trials if trial.report]

    @property
    def extrapolated(self) -> bool:
        """Whether its runs have other steps than it is about."""
        return any(run.steps != self.steps for run in self.runs)

    @property
    def kinds(self) -> dict[Kind, int]:
        """Forward passes of a run of `steps`, by kind; empty where that cannot be told."""
        return {} if self.plan is None else by_kind(self.plan)

    @property
    def options(self) -> dict[str, str] | None:
        """The variant's options as text."""
        options = self.variant.options
        return None if options is None else {name: str(value) for name, value in options.items()}

    def trial(self, prompt: str, seed: int | None) -> Trial | None:
        """The finished clip of a case."""
        return next((trial for trial in self.trials if (trial.prompt, trial.seed) == (prompt, seed)), None)

    @property
    def predicted_speedup(self) -> float | None:
        """Of the experts' time against as many plain steps, by the latest report; 1 for a plain variant."""
        if self.variant.options is None:
            return 1.0
        reports = [self.plan] if self.plan is not None and self.extrapolated else self.reports
        value = reports[-1].get("predicted_speedup") if reports else None
        return None if value is None else float(value)

    @property
    def notes(self) -> list[str]:
        """Remarks: the variant's own, why nothing was skipped, how far the times can be trusted, what went wrong."""
        notes = [self.variant.note] if self.variant.note else []
        notes += [f"nothing was skipped in time: {report['note']}" for report in self.reports if _idle(report)]
        notes += [f"latents off by {run.off_by:.1e}" for run in self.runs if run.off_by is not None]
        if not all(run.finite for run in self.runs):
            notes.append("latents that are not finite: these times say nothing")
        known = [run for run in self.runs if run.cpu_seconds is not None]
        busy = [run for run in known if (run.cpu_seconds or 0.0) < 0.8 * run.seconds]
        if busy:
            notes.append(
                f"{len(busy)} of {len(known)} runs had the processor for less than 80 % of their time: the "
                "machine is busy, and the seconds say little"
            )
        if self.error:
            notes.append(f"FAILED after {len(self.trials)} finished clips: {self.error}")
        return list(dict.fromkeys(notes))

    def mean(self, get: Callable[[Quality], float | None]) -> float | None:
        """Mean of a metric over the trials that have it; infinite only if it is so in every one."""
        return _mean(get(trial.quality) for trial in self.trials if trial.quality is not None)

    @property
    def duplication_ratio(self) -> float | None:
        """Mean over the trials."""
        return _mean(trial.duplication_ratio for trial in self.trials)


@dataclass(slots=True)
class Comparison:
    """A baseline and its variants on the same prompts and seeds.

    Attributes:
        baseline: what all others are measured against.
        variants: in the order of the table.
        facts: machine, versions, sizes: the heading of every table.
        notes: remarks on the whole.
        lost: files that were not written, and why.
        run_steps: steps that are run in place of the baseline's; None where as many.
        alone: seconds of one forward pass of each kind by itself; empty where parts are not timed.
        rest: seconds that a run takes beside its passes, as far as can be told before the first.
    """

    baseline: Results
    variants: list[Results]
    facts: dict[str, Any] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)
    lost: list[str] = field(default_factory=list)
    run_steps: int | None = None
    alone: dict[Kind, float] = field(default_factory=dict)
    rest: float = 0.0

    @property
    def rows(self) -> list[Results]:
        """The baseline, then the variants."""
        return [self.baseline, *self.variants]

    @property
    def failures(self) -> list[Results]:
        """The variants that stopped early."""
        return [results for results in self.rows if results.error]

    @property
    def absent(self) -> dict[str, str]:
        """Metrics that could not be had, and why."""
        found: dict[str, str] = {}
        for results in self.variants:
            for trial in results.trials:
                found |= trial.quality.absent if trial.quality else {}
        return found

    def timed(self, results: Results, run: Run) -> float | None:
        """Seconds of a run of the steps that a variant is about: as measured, or extrapolated by kind of pass.

        A pass takes the mean of its kind in that run, or else in all runs, or else what it took alone; None if nothing
        is known of a kind.
        """
        if run.steps == results.steps or results.steps is None:
            return run.seconds
        known = {**self.alone, **self._met, **means([run])}
        return run.at(results.steps, results.kinds, known) if results.kinds.keys() <= known.keys() else None

    @property
    def _met(self) -> dict[Kind, float]:
        return means(run for results in self.rows for run in results.runs)

    def not_met(self, results: Results) -> str:
        """Which forward passes of an extrapolated variant no run has, and what becomes of it; empty if all were met."""
        missing = sorted(results.kinds.keys() - self._met.keys()) if results.extrapolated else []
        if not missing:
            return ""
        found = "those timed alone stand in" if set(missing) <= self.alone.keys() else "it is not extrapolated"
        names = (f"the {expert}-noise expert's on {frames} latent frames" for expert, frames in missing)
        return f"no run has such forward passes, so {found}: {', '.join(names)}"

    def all_seconds(self, results: Results) -> list[float]:
        """Of every run, see `timed`."""
        return [seconds for run in results.runs if (seconds := self.timed(results, run)) is not None]

    def seconds(self, results: Results) -> float | None:
        """Median over all runs; None without timed ones."""
        return _median(self.all_seconds(results))

    def speedups(self, results: Results) -> list[float]:
        """Seconds of the baseline over those of `results`, run by run: those of one case that were made in one turn."""
        found = []
        for trial in results.trials:
            own = self.baseline.trial(trial.prompt, trial.seed)
            for reference, run in zip(own.runs if own else (), trial.runs, strict=False):
                plain, seconds = self.timed(self.baseline, reference), self.timed(results, run)
                found += [plain / seconds] if plain and seconds else []
        return found

    def speedup(self, results: Results) -> float | None:
        """Median of `speedups`; None without timed runs."""
        return _median(self.speedups(results))

    def predicted_speedup(self, results: Results) -> float | None:
        """By the experts' predicted time alone: the report's figure times the ratio of the steps; None if not known."""
        own, reference = results.predicted_speedup, self.baseline.predicted_speedup
        if own is None or reference is None or not results.steps or not self.baseline.steps:
            return None
        return own / reference * self.baseline.steps / results.steps

    def ideal_seconds(self, results: Results) -> float | None:
        """Each forward pass at the time that it takes alone, what is none as in the baseline; None if not known."""
        kinds, runs = results.kinds, self.baseline.runs
        known = kinds and runs and results.steps and kinds.keys() <= self.alone.keys()
        return runs[0].at(results.steps or 0, kinds, self.alone) if known else None

    def rest_of(self, results: Results) -> float | None:
        """Seconds of the runs as made that are no forward pass; None where parts are not timed."""
        return _median([run.rest for run in results.runs if run.passes])

    def overhead(self, results: Results) -> float | None:
        """halfframe's own share of the runs as made: what is left of them, less the same in the baseline's."""
        own = _median([run.own + run.enabling for run in results.runs if run.passes and results.reports])
        plain = _median([run.own for run in self.baseline.runs])
        return (
            None if own is None or plain is None else (own - plain) / statistics.median(r.seconds for r in results.runs)
        )


def describe(error: BaseException) -> str:
    """The error as one line, with its type; of one that goes on for pages, as ffmpeg's, the beginning."""
    return f"{type(error).__name__}: {textwrap.shorten(str(error), 400)}"


class ComparisonError(HalfframeError):
    """A comparison cannot go on; `comparison` holds what was finished before."""

    def __init__(self, message: str, comparison: Comparison) -> None:
        super().__init__(message)
        self.comparison = comparison


def _idle(report: Mapping[str, Any]) -> bool:
    """Whether nothing was skipped where something was to be: truncated guidance and no strategy are asked for too."""
    return bool(report.get("note")) and not report.get("guidance_truncated") and report.get("strategy") != Strategy.name


def _median(values: Sequence[float]) -> float | None:
    return statistics.median(values) if values else None


def _mean(values: Iterable[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    finite = [value for value in known if math.isfinite(value)]
    if not finite:
        return known[0] if known else None
    return statistics.fmean(finite)
