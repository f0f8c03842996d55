"""A comparison as plain data, as a page of Markdown and as one of HTML, all from one list of columns."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from halfframe.compare.report_page import Bar, Frontier, page
from halfframe.compare.results import Comparison, Results
from halfframe.compare.runs import Passes
from halfframe.compare.tables import Table, escaped, number

__all__ = ["html_page", "markdown", "plain", "to_dict"]


@dataclass(frozen=True, slots=True)
class _Column:
    """One figure of every variant.

    Attributes:
        key: its name in the data.
        name: what heads it; empty where the tables leave it out.
        form: how it is written.
        get: the figure; None if there is none.
        more: what else the cell says.
    """

    key: str
    name: str
    form: str
    get: Callable[[Comparison, Results], Any]
    more: Callable[[Comparison, Results], str] = lambda *_: ""

    def cell(self, comparison: Comparison, results: Results) -> str:
        value = self.get(comparison, results)
        return "" if value is None else number(value, self.form) + self.more(comparison, results)


def _spread(values: Sequence[float]) -> str:
    return f" ({min(values):.2f} to {max(values):.2f})" if len(values) > 1 else ""


def _marked(_: Comparison, results: Results) -> str:
    return " (ext.)" if results.extrapolated else ""


def _speedup(comparison: Comparison, results: Results) -> str:
    spread = "" if results is comparison.baseline else _spread(comparison.speedups(results))
    return spread + _marked(comparison, results)


def _share(comparison: Comparison, results: Results) -> float | None:
    ideal, seconds = comparison.ideal_seconds(results), comparison.seconds(results)
    return ideal / seconds if ideal and seconds else None


def _allowed(comparison: Comparison, results: Results) -> float | None:
    ideal, plain = comparison.ideal_seconds(results), comparison.seconds(comparison.baseline)
    return plain / ideal if ideal and plain else None


def _identical(_: Comparison, results: Results) -> str:
    count = sum(trial.quality.identical_frames for trial in results.trials if trial.quality)
    return f" ({count} identical)" if count and math.isfinite(results.mean(lambda q: q.psnr) or 0) else ""


def _peak(name: str) -> Callable[[Comparison, Results], float | None]:
    return lambda _, results: max((getattr(run, name) for run in results.runs if getattr(run, name)), default=None)


_COLUMNS = (
    _Column("steps", "steps", "{}", lambda c, r: r.steps),
    _Column("clips", "clips", "{}", lambda c, r: len(r.trials)),
    _Column("seconds", "seconds", "{:.2f}", Comparison.seconds, lambda c, r: _spread(c.all_seconds(r)) + _marked(c, r)),
    _Column("speedup", "speed-up", "{:.2f}x", Comparison.speedup, _speedup),
    _Column("speedups", "", "", Comparison.speedups),
    _Column("extrapolated", "", "", lambda c, r: r.extrapolated),
    _Column("predicted_speedup", "predicted", "{:.2f}x", Comparison.predicted_speedup),
    _Column("ideal_seconds", "", "", Comparison.ideal_seconds),
    _Column("ideal_speedup", "passes allow", "{:.2f}x", _allowed, _marked),
    _Column("share_of_ideal", "share of that", "{:.1%}", _share, _marked),
    _Column("rest", "no pass, s", "{:.2f}", Comparison.rest_of),
    _Column("overhead", "overhead", "{:+.2%}", Comparison.overhead),
    _Column("peak_gpu_gib", "peak GPU GiB", "{:.1f}", _peak("peak_gpu_gib")),
    _Column("peak_host_gib", "peak host GiB", "{:.1f}", _peak("peak_host_gib")),
    _Column("mse", "MSE", "{:.2e}", lambda c, r: r.mean(lambda q: q.mse)),
    _Column("psnr_db", "PSNR dB", "{:.1f}", lambda c, r: r.mean(lambda q: q.psnr), _identical),
    _Column("ssim", "SSIM", "{:.3f}", lambda c, r: r.mean(lambda q: q.ssim)),
    _Column("lpips", "LPIPS", "{:.3f}", lambda c, r: r.mean(lambda q: q.lpips)),
    _Column("duplication_ratio", "duplication", "{:.2f}", lambda c, r: r.duplication_ratio),
    _Column("motion_ratio", "motion", "{:.2f}", lambda c, r: r.mean(lambda q: q.motion_ratio)),
)
_MEANINGS = {
    "seconds": "wall time of the whole call, device synchronised, median over the runs, least and most in brackets",
    "speed-up": "median of the ratios to the baseline's run of the same clip in the same turn",
    "predicted": "of the experts' arithmetic alone, by the FLOP model",
    "passes allow": "the speed-up if each forward pass took the time that it takes alone, all else as in the baseline",
    "no pass, s": "seconds of the runs as made that are no forward pass",
    "overhead": "what is left of the runs as made, enabling included, without passes, scheduler, VAE and text encoder, "
    "less the same in the baseline, in percent of the run",
    "peak host GiB": "of the process up to then, since it cannot be reset",
    "MSE": "mean squared error against the baseline's clip, values in 0..1",
    "PSNR dB": "-10 log10(MSE) per frame, peak 1 (MSE 0.01 is 20 dB), mean over frames that differ from the baseline's",
    "SSIM": "windowed, Gaussian sigma 1.5 (11 pixels), data range 1, mean of channels and frames (scikit-image)",
    "LPIPS": "AlexNet, mean over frames; 0 = the same",
    "duplication": "change within pairs of latent frames over change between pairs, seen in the last video frame of "
    "each; 1 = no judder, 0 = every latent frame shown twice",
    "motion": "mean difference of adjacent frames over the baseline's; 1 = as much motion",
}


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
    shown = [column.name for column in _shown(comparison)]
    notes = [f"{name}: {meaning}" for name, meaning in _MEANINGS.items() if name in shown]
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
        about = [*results.notes, *filter(None, [comparison.not_met(results)])]
        notes += [f"{results.variant.name}: {note}" for note in about]
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
            label = f"{seconds:.2f} s, {number(speedup, '{:.2f}x')}{_marked(comparison, results)}"
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
