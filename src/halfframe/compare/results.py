"""What is compared, and what comes of it: variants, their runs, and the whole comparison as plain data."""

from __future__ import annotations

import math
import statistics
import textwrap
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from halfframe.compare.quality import Quality
from halfframe.errors import HalfframeError, OptionError

__all__ = ["Comparison", "ComparisonError", "Results", "Trial", "Variant", "describe", "fewer_steps", "plain"]


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
        seconds: wall time of each run, device synchronised; none for a clip that was read from a file.
        shape: of the video, ``(F, H, W, 3)``.
        duplication_ratio: see `halfframe.compare.video_duplication_ratio`.
        quality: against the baseline's clip of the same prompt and seed; None for the baseline itself.
        report: halfframe's report of the run as plain data; None for a plain run.
        cpu_seconds: of this process during each run; none if it was not read.
    """

    prompt: str
    seed: int | None
    seconds: tuple[float, ...]
    shape: tuple[int, ...]
    duplication_ratio: float | None
    quality: Quality | None = None
    report: Mapping[str, Any] | None = None
    cpu_seconds: tuple[float, ...] = ()


@dataclass(slots=True)
class Results:
    """Everything known of one variant so far; `error` says why it stopped, if it did."""

    variant: Variant
    steps: int | None
    trials: list[Trial] = field(default_factory=list)
    error: str = ""

    @property
    def seconds(self) -> float | None:
        """Median over all runs; None without timed ones."""
        return _median(self.all_seconds)

    @property
    def all_seconds(self) -> list[float]:
        """Of every run of every trial."""
        return [seconds for trial in self.trials for seconds in trial.seconds]

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
        reports = [trial.report for trial in self.trials if trial.report]
        value = reports[-1].get("predicted_speedup") if reports else None
        return None if value is None else float(value)

    @property
    def notes(self) -> list[str]:
        """Remarks: the variant's own, why nothing was skipped, which metrics are absent, what went wrong."""
        notes = [self.variant.note] if self.variant.note else []
        reports = [trial.report for trial in self.trials if trial.report is not None]
        notes += [f"nothing was skipped in time: {report['note']}" for report in reports if _idle(report)]
        pairs = [pair for trial in self.trials for pair in zip(trial.seconds, trial.cpu_seconds, strict=False)]
        busy = [pair for pair in pairs if pair[1] < 0.8 * pair[0]]
        if busy:
            notes.append(
                f"{len(busy)} of {len(pairs)} runs had the processor for less than 80 % of their time: the "
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
    """

    baseline: Results
    variants: list[Results]
    facts: dict[str, Any] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)
    lost: list[str] = field(default_factory=list)

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

    def speedup(self, results: Results) -> float | None:
        """Median of `speedups`; None without timed runs."""
        return _median(self.speedups(results))

    def speedups(self, results: Results) -> list[float]:
        """Seconds of the baseline over those of `results`, run by run: those of one case that were made in one turn."""
        found = []
        for trial in results.trials:
            own = self.baseline.trial(trial.prompt, trial.seed)
            pairs = zip(own.seconds, trial.seconds, strict=False) if own else ()
            found += [baseline / seconds for baseline, seconds in pairs if seconds]
        return found

    def predicted_speedup(self, results: Results) -> float | None:
        """By the experts' predicted time alone: the report's figure times the ratio of the steps; None if not known."""
        own, reference = results.predicted_speedup, self.baseline.predicted_speedup
        if own is None or reference is None or not results.steps or not self.baseline.steps:
            return None
        return own / reference * self.baseline.steps / results.steps

    def to_dict(self) -> dict[str, Any]:
        """Plain data for JSON. An infinite PSNR is null, and ``identical_frames`` says why."""
        return {
            "facts": plain(self.facts),
            "notes": self.notes,
            "absent_metrics": self.absent,
            "baseline": self.baseline.variant.name,
            "variants": [self._row(results) for results in self.rows],
        }

    def _row(self, results: Results) -> dict[str, Any]:
        row = {
            "name": results.variant.name,
            "options": results.options,
            "steps": results.steps,
            "note": results.variant.note,
            "notes": results.notes,
            "error": results.error or None,
            "median_seconds": results.seconds,
            "speedup": self.speedup(results),
            "speedups": self.speedups(results),
            "predicted_speedup": self.predicted_speedup(results),
            "mse": results.mean(lambda q: q.mse),
            "psnr_db": results.mean(lambda q: q.psnr),
            "ssim": results.mean(lambda q: q.ssim),
            "lpips": results.mean(lambda q: q.lpips),
            "motion_ratio": results.mean(lambda q: q.motion_ratio),
            "duplication_ratio": results.duplication_ratio,
            "trials": [_trial(trial) for trial in results.trials],
        }
        return dict(plain(row))


def describe(error: BaseException) -> str:
    """The error as one line, with its type; of one that goes on for pages, as ffmpeg's, the beginning."""
    return f"{type(error).__name__}: {textwrap.shorten(str(error), 400)}"


class ComparisonError(HalfframeError):
    """A comparison cannot go on; `comparison` holds what was finished before."""

    def __init__(self, message: str, comparison: Comparison) -> None:
        super().__init__(message)
        self.comparison = comparison


def _idle(report: Mapping[str, Any]) -> bool:
    return bool(report.get("note")) and not report.get("guidance_truncated")


def _median(values: Sequence[float]) -> float | None:
    return statistics.median(values) if values else None


def _mean(values: Iterable[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    finite = [value for value in known if math.isfinite(value)]
    if not finite:
        return known[0] if known else None
    return statistics.fmean(finite)


def _trial(trial: Trial) -> dict[str, Any]:
    data = asdict(trial)
    if trial.quality is not None:
        data["quality"] |= {name: getattr(trial.quality, name) for name in ("psnr", "ssim", "lpips")}
        data["quality"]["identical_frames"] = trial.quality.identical_frames
    return data


def plain(value: Any) -> Any:
    """`value` with only what strict JSON has: no infinities, no tuples, no objects."""
    if isinstance(value, Mapping):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [plain(item) for item in value]
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    return value if isinstance(value, str | int | None) else repr(value)
