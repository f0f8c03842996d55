"""A comparison as plain data, as a page of Markdown and as one of HTML, all from one list of columns."""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from halfframe.compare.report_page import Bar, Frontier, page
from halfframe.compare.results import Comparison, Results
from halfframe.compare.runs import Passes
from halfframe.compare.tables import Table, escaped, number

__all__ = ["html_page", "markdown", "plain", "to_dict"]

_Get = Callable[[Comparison, Results], Any]


@dataclass(frozen=True, slots=True)
class _Column:
    """One figure of every variant.

    Attributes:
        key: its name in the data.
        name: what heads it; empty if the tables leave it out.
        get: the figure; None if there is none.
        form: how it is written.
        unit: behind it.
        meaning: said below the table.
        more: what else the cell says.
    """

    key: str
    name: str
    get: _Get
    form: str = ""
    unit: str = ""
    meaning: str = ""
    more: Callable[[Comparison, Results], str] = lambda *_: ""

    def cell(self, comparison: Comparison, results: Results) -> str:
        value = self.get(comparison, results)
        return number(value, self.form, self.unit) + self.more(comparison, results) if value is not None else ""


def _spread(values: Sequence[float]) -> str:
    return f" ({min(values):.2f} to {max(values):.2f})" if len(values) > 1 else ""


def _marked(results: Results) -> str:
    return " (ext.)" if results.extrapolated else ""


def _share(comparison: Comparison, results: Results) -> float | None:
    ideal, seconds = comparison.ideal_seconds(results), comparison.seconds(results)
    return ideal / seconds if ideal and seconds else None


def _allowed(comparison: Comparison, results: Results) -> float | None:
    ideal, plain = comparison.ideal_seconds(results), comparison.seconds(comparison.baseline)
    return plain / ideal if ideal and plain else None


def _identical(results: Results) -> str:
    count = sum(trial.quality.identical_frames for trial in results.trials if trial.quality)
    return f" ({count} identical)" if count and math.isfinite(results.mean(lambda q: q.psnr) or 0) else ""


def _most(values: Sequence[float | None]) -> float | None:
    return max((value for value in values if value is not None), default=None)


_COLUMNS = (
    _Column("steps", "steps", lambda c, r: r.steps, "d"),
    _Column("clips", "clips", lambda c, r: len(r.trials), "d"),
    _Column(
        "median_seconds",
        "seconds",
        Comparison.seconds,
        ".2f",
        meaning="wall time of the whole call, device synchronised, median over the runs, least and most in brackets",
        more=lambda c, r: _spread(c.all_seconds(r)) + _marked(r),
    ),
    _Column(
        "speedup",
        "speed-up",
        Comparison.speedup,
        ".2f",
        "x",
        "median of the ratios to the baseline's run of the same clip in the same turn",
        lambda c, r: ("" if r is c.baseline else _spread(c.speedups(r))) + _marked(r),
    ),
    _Column("speedups", "", Comparison.speedups),
    _Column("extrapolated", "", lambda c, r: r.extrapolated),
    _Column(
        "predicted_speedup",
        "predicted",
        Comparison.predicted_speedup,
        ".2f",
        "x",
        "of the experts' arithmetic alone, by the FLOP model",
    ),
    _Column("ideal_seconds", "", Comparison.ideal_seconds),
    _Column(
        "ideal_speedup",
        "passes allow",
        _allowed,
        ".2f",
        "x",
        "the speed-up if each forward pass took the time that it takes alone, and all else that of the baseline",
        lambda c, r: _marked(r),
    ),
    _Column("share_of_ideal", "share of that", _share, ".1%", more=lambda c, r: _marked(r)),
    _Column(
        "rest",
        "no pass, s",
        lambda c, r: statistics.median(run.rest for run in r.runs) if c.alone and r.runs else None,
        ".2f",
        meaning="seconds of the runs as made that are no forward pass",
    ),
    _Column(
        "overhead",
        "overhead",
        Comparison.overhead,
        "+.2%",
        meaning="what is left of the runs as made, enabling included, without passes, scheduler, VAE and text encoder, "
        "less the same in the baseline, in percent of the run",
    ),
    _Column("peak_gpu_gib", "peak GPU GiB", lambda c, r: _most([run.peak_gpu_gib for run in r.runs]), ".1f"),
    _Column(
        "peak_host_gib",
        "peak host GiB",
        lambda c, r: _most([run.peak_host_gib for run in r.runs]),
        ".1f",
        meaning="of the process up to then, since it cannot be reset",
    ),
    _Column(
        "mse",
        "MSE",
        lambda c, r: r.mean(lambda q: q.mse),
        ".2e",
        meaning="mean squared error against the baseline's clip, values in 0..1",
    ),
    _Column(
        "psnr_db",
        "PSNR dB",
        lambda c, r: r.mean(lambda q: q.psnr),
        ".1f",
        meaning="-10 log10(MSE) per frame, peak 1 (MSE 0.01 is 20 dB), mean over frames that differ from the "
        "baseline's",
        more=lambda c, r: _identical(r),
    ),
    _Column(
        "ssim",
        "SSIM",
        lambda c, r: r.mean(lambda q: q.ssim),
        ".3f",
        meaning="windowed, Gaussian sigma 1.5 (11 pixels), data range 1, mean of channels and frames (scikit-image)",
    ),
    _Column(
        "lpips",
        "LPIPS",
        lambda c, r: r.mean(lambda q: q.lpips),
        ".3f",
        meaning="AlexNet, mean over frames; 0 = the same",
    ),
    _Column(
        "duplication_ratio",
        "duplication",
        lambda c, r: r.duplication_ratio,
        ".2f",
        meaning="change within pairs of latent frames over change between pairs, seen in the last video frame of "
        "each; 1 = no judder, 0 = every latent frame shown twice",
    ),
    _Column(
        "motion_ratio",
        "motion",
        lambda c, r: r.mean(lambda q: q.motion_ratio),
        ".2f",
        meaning="mean difference of adjacent frames over the baseline's; 1 = as much motion",
    ),
)


def to_dict(comparison: Comparison) -> dict[str, Any]:
    """Plain data for JSON. An infinite PSNR is null, and ``identical_frames`` says why."""
    data = {
        "facts": comparison.facts,
        "notes": comparison.notes,
        "absent_metrics": comparison.absent,
        "run_steps": comparison.run_steps,
        "alone": [asdict(Passes(*kind, 1, seconds)) for kind, seconds in comparison.alone.items()],
        "rest": comparison.rest,
        "baseline": comparison.baseline.variant.name,
        "variants": [_row(comparison, results) for results in comparison.rows],
    }
    return dict(plain(data))


def _row(comparison: Comparison, results: Results) -> dict[str, Any]:
    trials = []
    for trial in results.trials:
        data = {**asdict(trial), "seconds": [run.seconds for run in trial.runs]}
        if trial.quality is not None:
            names = ("psnr", "ssim", "lpips", "identical_frames")
            data["quality"] |= {name: getattr(trial.quality, name) for name in names}
        trials.append(data)
    return {
        "name": results.variant.name,
        "options": results.options,
        "note": results.variant.note,
        "notes": results.notes,
        "error": results.error or None,
        **{column.key: column.get(comparison, results) for column in _COLUMNS},
        "plan": results.plan,
        "trials": trials,
    }


def markdown(comparison: Comparison) -> str:
    """The comparison as a heading of facts, one table, and what its columns mean."""
    lines = ["# halfframe compare", "", *(f"- {escaped(fact)}" for fact in _facts(comparison)), ""]
    lines += [_table(comparison).markdown(), "", *(f"- {escaped(note)}" for note in _notes(comparison))]
    return "\n".join(lines) + "\n"


def html_page(comparison: Comparison, cases: Sequence[Mapping[str, Any]]) -> str:
    """The same to look at, with the clips of `cases`; see `halfframe.compare.report_page`."""
    facts = comparison.facts
    lead = ", ".join(str(facts[name]) for name in ("pipeline", "video", "machine", "weights", "date") if name in facts)
    notes = [*_notes(comparison), *_facts(comparison)]
    frontier = _frontier(comparison)
    return page("halfframe compare", lead, [_table(comparison)], cases, frontier, notes, _bars(comparison))


def _shown(comparison: Comparison) -> list[_Column]:
    """The columns that have something in them."""
    named = [column for column in _COLUMNS if column.name]
    return [one for one in named if any(one.get(comparison, results) is not None for results in comparison.rows)]


def _table(comparison: Comparison) -> Table:
    columns = _shown(comparison)
    rows = [
        [
            results.variant.name + (" (failed)" if results.error else ""),
            *(column.cell(comparison, results) for column in columns),
        ]
        for results in comparison.rows
    ]
    return Table(["variant", *(column.name for column in columns)], rows)


def _facts(comparison: Comparison) -> list[str]:
    values = {key: "; ".join(map(str, v)) if isinstance(v, list) else str(v) for key, v in comparison.facts.items()}
    return [f"{key.replace('_', ' ')}: {value}" for key, value in values.items()]


def _notes(comparison: Comparison) -> list[str]:
    notes = [f"{column.name}: {column.meaning}" for column in _shown(comparison) if column.meaning]
    notes += [f"{name.upper()} is absent: {reason}" for name, reason in comparison.absent.items()]
    for (expert, frames), seconds in comparison.alone.items():
        notes.append(f"one forward pass of the {expert}-noise expert on {frames} latent frames, alone: {seconds:.4f} s")
    if any(results.extrapolated for results in comparison.rows):
        notes.append(
            f"(ext.): extrapolated to the steps named from runs of {comparison.run_steps} steps, guidance truncated in "
            "proportion: each forward pass at the mean of its kind, expert and latent frames, scheduler steps "
            "likewise, the rest as it was; fewer steps from the baseline's runs"
        )
    for results in comparison.rows:
        about = [*results.notes, comparison.untimed(results), comparison.borrowed(results)]
        notes += [f"{results.variant.name}: {note}" for note in about if note]
    return notes + comparison.notes


def _frontier(comparison: Comparison) -> Frontier | None:
    """Seconds against PSNR; None where nothing was timed."""
    groups: dict[str, list[tuple[str, float, float]]] = {"with halfframe": [], "without": []}
    for results in comparison.variants:
        seconds, psnr = comparison.seconds(results), results.mean(lambda q: q.psnr)
        if seconds is not None and psnr is not None and math.isfinite(psnr):
            kind = "without" if results.variant.options is None else "with halfframe"
            groups[kind].append((results.variant.name, seconds, psnr))
    plain = comparison.seconds(comparison.baseline)
    if plain is None or not any(groups.values()):
        return None
    return Frontier(f"seconds a clip (baseline {plain:.2f})", "PSNR to the baseline, dB", groups)


def _bars(comparison: Comparison) -> list[Bar]:
    """Seconds of each variant, with the speed-up."""
    bars = []
    for results in comparison.rows:
        seconds, speedup = comparison.seconds(results), comparison.speedup(results)
        if seconds is not None:
            label = f"{seconds:.2f} s, {number(speedup, '.2f', 'x')}{_marked(results)}"
            bars.append(Bar(results.variant.name, seconds, label, results.variant.options is not None))
    return bars


def plain(value: Any) -> Any:
    """`value` with only what strict JSON has: no infinities, no tuples, no objects."""
    if isinstance(value, Mapping):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [plain(item) for item in value]
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    return value if isinstance(value, str | int | None) else repr(value)
