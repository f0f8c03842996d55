"""A comparison as a page of Markdown, and as one of HTML."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from halfframe.compare.report_page import Frontier, page
from halfframe.compare.results import Comparison, Results
from halfframe.compare.tables import Table, escaped, number

__all__ = ["html_page", "markdown"]

_COLUMNS = {
    "MSE": "mean squared error against the baseline's clip, values in 0..1",
    "PSNR dB": "-10 log10(MSE) per frame, peak 1 (MSE 0.01 is 20 dB), mean over frames that differ from the baseline's",
    "SSIM": "windowed, Gaussian sigma 1.5 (11 pixels), data range 1, mean of channels and frames (scikit-image)",
    "LPIPS": "AlexNet, mean over frames; 0 = the same",
    "duplication": "change within pairs of latent frames over change between pairs, seen in the last video frame of "
    "each; 1 = no judder, 0 = every latent frame shown twice",
    "motion": "mean difference of adjacent frames over the baseline's; 1 = as much motion",
}
_SECONDS = (
    "Seconds are wall time of the whole call, device synchronised, median over the runs, least and most in brackets; "
    "speed-up is the median of the ratios to the baseline's run of the same clip in the same turn; predicted is for "
    "the experts' arithmetic alone."
)


def markdown(comparison: Comparison) -> str:
    """The comparison as a heading of facts, one table, and what its columns mean."""
    lines = ["# halfframe compare", "", *(f"- {escaped(fact)}" for fact in _facts(comparison)), ""]
    lines += [_table(comparison).markdown(), "", _SECONDS, "", *(f"- {escaped(note)}" for note in _notes(comparison))]
    return "\n".join(lines) + "\n"


def html_page(comparison: Comparison, cases: Sequence[Mapping[str, Any]]) -> str:
    """The same to look at, with the clips of `cases`; see `halfframe.compare.report_page`."""
    facts = comparison.facts
    lead = ", ".join(str(facts[name]) for name in ("pipeline", "video", "machine", "weights", "date") if name in facts)
    notes = [_SECONDS, *_notes(comparison), *_facts(comparison)]
    return page("halfframe compare", lead, [_table(comparison)], cases, _frontier(comparison), notes)


def _facts(comparison: Comparison) -> list[str]:
    values = {key: "; ".join(map(str, v)) if isinstance(v, list) else str(v) for key, v in comparison.facts.items()}
    return [f"{key.replace('_', ' ')}: {value}" for key, value in values.items()]


def _notes(comparison: Comparison) -> list[str]:
    absent = comparison.absent
    notes = [f"{name}: {meaning}" for name, meaning in _COLUMNS.items() if name.lower() not in absent]
    notes += [f"{name.upper()} is absent: {reason}" for name, reason in absent.items()]
    notes += [f"{results.variant.name}: {note}" for results in comparison.rows for note in results.notes]
    return notes + comparison.notes


def _table(comparison: Comparison) -> Table:
    columns = [name for name in _COLUMNS if name.lower() not in comparison.absent]
    header = ["variant", "steps", "clips", "seconds", "speed-up", "predicted", *columns]
    return Table(header, [_row(comparison, results, columns) for results in comparison.rows])


def _row(comparison: Comparison, results: Results, columns: Sequence[str]) -> list[str]:
    identical = sum(trial.quality.identical_frames for trial in results.trials if trial.quality)
    psnr = results.mean(lambda q: q.psnr)
    some = f" ({identical} identical)" if identical and math.isfinite(psnr or 0) else ""
    cells = {
        "MSE": number(results.mean(lambda q: q.mse), ".2e"),
        "PSNR dB": number(psnr, ".1f") + some,
        "SSIM": number(results.mean(lambda q: q.ssim), ".3f"),
        "LPIPS": number(results.mean(lambda q: q.lpips), ".3f"),
        "duplication": number(results.duplication_ratio, ".2f"),
        "motion": number(results.mean(lambda q: q.motion_ratio), ".2f"),
    }
    return [
        results.variant.name + (" (failed)" if results.error else ""),
        "" if results.steps is None else str(results.steps),
        str(len(results.trials)),
        number(results.seconds, ".2f") + _spread(results.all_seconds),
        number(comparison.speedup(results), ".2f", "x")
        + ("" if results is comparison.baseline else _spread(comparison.speedups(results))),
        number(comparison.predicted_speedup(results), ".2f", "x"),
        *(cells[name] for name in columns),
    ]


def _spread(values: Sequence[float]) -> str:
    return f" ({min(values):.2f} to {max(values):.2f})" if len(values) > 1 else ""


def _frontier(comparison: Comparison) -> Frontier | None:
    """Seconds against PSNR; None where nothing was timed."""
    groups: dict[str, list[tuple[str, float, float]]] = {"with halfframe": [], "without": []}
    for results in comparison.variants:
        seconds, psnr = results.seconds, results.mean(lambda q: q.psnr)
        if seconds is not None and psnr is not None and math.isfinite(psnr):
            kind = "without" if results.variant.options is None else "with halfframe"
            groups[kind].append((results.variant.name, seconds, psnr))
    plain = comparison.baseline.seconds
    if plain is None or not any(groups.values()):
        return None
    return Frontier(f"seconds a clip (baseline {plain:.2f})", "PSNR to the baseline, dB", groups)
