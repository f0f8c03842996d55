"""What the measurements come to, and how it is shown. Nothing is run here."""

from __future__ import annotations

import dataclasses
import statistics
from collections.abc import Callable

from _results import Results, Section, Trials
from _steps import Run
from _variants import BASELINE, Clip
from halfframe import Strategy
from halfframe.compare.equal_cost import equal_steps
from halfframe.compare.results import fewer_steps
from halfframe.compare.tables import Table, number

__all__ = ["Figures", "comparison", "markdown", "rivals"]

_MARK = " (ext.)"


@dataclasses.dataclass(frozen=True)
class Figures:
    """One line of a table.

    Attributes:
        name: the variant.
        steps: solver steps that the line is about.
        extrapolated: whether `seconds` and all that follows from them are extrapolated from a run of fewer steps.
        seconds: median of the runs.
        speedup: baseline's seconds over these; None without a baseline.
        ideal_seconds: each forward at the time that it takes alone, what is no forward as in the baseline.
        ideal_speedup: the baseline's seconds over those.
        share_of_ideal: ideal seconds over seconds.
        rest: seconds that are no forward, as measured.
        overhead: halfframe's own share of the run as measured, beside the same in the baseline's; None for plain runs.
        predicted_speedup: of the experts, by the FLOP model, of the run as measured.
        peak_gpu_gib: the most of the runs.
        peak_host_gib: of the process up to the last of the runs.
        runs: how many were measured.
        note: what else there is to say.
    """

    name: str
    steps: int
    extrapolated: bool
    seconds: float | None = None
    speedup: float | None = None
    ideal_seconds: float | None = None
    ideal_speedup: float | None = None
    share_of_ideal: float | None = None
    rest: float | None = None
    overhead: float | None = None
    predicted_speedup: float | None = None
    peak_gpu_gib: float | None = None
    peak_host_gib: float | None = None
    runs: int = 0
    note: str = ""


def rivals(section: Section) -> dict[int, list[str]]:
    """Numbers of steps at which a plain run costs what a variant does -> those variants; by each one's first run.

    What is no step (VAE, text encoder, offloading) stays with fewer steps, so it is left out of the division.
    """
    baseline = section.trials.get(BASELINE.name)
    if baseline is None or not baseline.runs:
        return {}
    run = baseline.runs[0]
    rest = run.rest - run.solver
    step = (section.seconds(run, BASELINE.name) - rest) / section.steps
    found: dict[int, list[str]] = {}
    for name, trials in section.trials.items():
        if trials is baseline or not trials.runs or trials.steps != section.steps or section.untimed(name):
            continue
        count = equal_steps(section.seconds(trials.runs[0], name), rest, step, section.steps)
        if count is not None:
            found.setdefault(count, []).append(name)
    return dict(sorted(found.items(), reverse=True))


def comparison(section: Section) -> list[Figures]:
    """The lines of a section's table: baseline, variants, fewer steps."""
    fewer = rivals(section)
    named = [(name, trials) for name, trials in section.trials.items() if trials.steps == section.steps]
    lines = [_figures(section, name, trials) for name, trials in named]
    for steps, names in fewer.items():
        name = fewer_steps(steps).name
        trials = section.trials.get(name)
        if trials is None and section.extrapolated:
            # A shortened run with fewer steps would be the baseline's over again.
            trials = Trials(section.trials[BASELINE.name].runs, steps)
        if trials is not None:
            line = _figures(section, name, trials)
            note = "; ".join(filter(None, ["at the cost of " + ", ".join(names), line.note]))
            lines.append(dataclasses.replace(line, note=note))
    return lines


def _figures(section: Section, name: str, trials: Trials) -> Figures:
    baseline = section.trials.get(BASELINE.name)
    plain = baseline.runs if baseline else []
    if not trials.runs or baseline is None or not plain:
        return Figures(name, trials.steps, False, note=_note(trials))
    if refused := section.untimed(name if name in section.trials else BASELINE.name) or section.untimed(BASELINE.name):
        return Figures(name, trials.steps, False, note="; ".join(filter(None, [_note(trials), refused])))
    reference = plain[0]
    seconds = statistics.median(section.seconds(run, name, trials.steps) for run in trials.runs)
    reference_seconds = statistics.median(section.seconds(run, BASELINE.name) for run in plain)
    ideal = section.seconds(trials.runs[0].ideal(reference, section.alone), name, trials.steps)
    reports = [run.report for run in trials.runs if run.report is not None]
    return Figures(
        name=name,
        steps=trials.steps,
        extrapolated=any(run.steps != trials.steps for run in trials.runs),
        seconds=seconds,
        speedup=reference_seconds / seconds,
        ideal_seconds=ideal,
        ideal_speedup=reference_seconds / ideal,
        share_of_ideal=ideal / seconds,
        rest=statistics.median(run.rest for run in trials.runs),
        overhead=_overhead(trials.runs, plain) if reports else None,
        predicted_speedup=reports[-1]["predicted_speedup"] if reports else None,
        peak_gpu_gib=max((run.peak_gpu_gib for run in trials.runs if run.peak_gpu_gib is not None), default=None),
        peak_host_gib=trials.runs[-1].peak_host_gib,
        runs=len(trials.runs),
        note=_note(trials),
    )


def _overhead(runs: list[Run], plain: list[Run]) -> float:
    own = statistics.median(run.own + run.enabling for run in runs)
    return (own - statistics.median(run.own for run in plain)) / statistics.median(run.seconds for run in runs)


def _note(trials: Trials) -> str:
    notes = [trials.error] if trials.error else []
    for run in trials.runs:
        report = run.report or {}
        if report.get("note") and report["strategy"] != Strategy.name:
            notes.append(f"nothing was skipped in time: {report['note']}")
        if report.get("prefetch"):
            notes.append(f"prefetch {report['prefetch']}")
        if run.off_by is not None:
            notes.append(f"latents off by {run.off_by:.1e}")
        if not run.finite:
            notes.append("latents that are not finite: these times say nothing")
    return "; ".join(dict.fromkeys(notes))


_COLUMNS: dict[str, Callable[[Figures], str]] = {
    "variant": lambda f: f.name,
    "steps": lambda f: str(f.steps),
    "seconds": lambda f: _marked(f, f.seconds, ".2f"),
    "speed-up": lambda f: _marked(f, f.speedup, ".2f", "x"),
    "forwards allow": lambda f: _marked(f, f.ideal_speedup, ".2f", "x"),
    "share of that": lambda f: _marked(f, f.share_of_ideal, ".1%"),
    "no forward, s": lambda f: number(f.rest, ".2f"),
    "overhead": lambda f: number(f.overhead, "+.2%"),
    "FLOP model": lambda f: number(f.predicted_speedup, ".2f", "x"),
    "peak GPU GiB": lambda f: number(f.peak_gpu_gib, ".1f"),
    "peak host GiB": lambda f: number(f.peak_host_gib, ".1f"),
    "runs": lambda f: str(f.runs),
    "note": lambda f: f.note,
}


def markdown(results: Results) -> str:
    """All that there is, as one page."""
    lines = [f"- {name.replace('_', ' ')}: {value}" for name, value in results.facts.items()]
    lines += [f"- command: `{command}`" for command in results.commands]
    lines += ["", _LEGEND]
    for section in results.sections:
        lines += ["", *_section(section)]
    return "\n".join(lines)


_LEGEND = """\
Weights are random. Seconds are medians of whole calls, with the device synchronised around every forward, solver step,
decoding and text encoding, in all variants alike. "forwards allow": each forward at the time that it takes alone, all
else as in the baseline. "no forward" and "overhead" are of the runs as they were made: "overhead" is what is left of a
run, enabling included, without forwards, solver, VAE and text encoder, less the same in the baseline, in percent of the
run. "FLOP model": what it predicts for the experts alone in that run. Peak GPU memory is what was allocated during the
run; peak host memory is the process's up to then, since it cannot be reset."""


def _section(section: Section) -> list[str]:
    clip = Clip.parse(section.clip)
    high, low = section.split(section.steps)
    offload = ", offload_model=True" if section.offload else ""
    lines = [
        f"## {section.host}: {clip.video_frames} frames {clip.width}x{clip.height}{offload}",
        "",
        f"- {section.steps} steps, {high} high-noise and {low} low-noise, {section.solver}, shift {section.shift:g}; "
        f"CFG truncation {section.truncation[0]}, {section.truncation[1]}",
        *(
            f"- one forward on {count} of {clip.latent_frames} latent frames, alone: {seconds:.4f} s"
            for count, seconds in sorted(section.alone.items(), reverse=True)
        ),
        f"- decoding alone: {section.decode_alone:.3f} s",
    ]
    if section.extrapolated:
        run_high, run_low = section.split(section.run_steps)
        lines.append(
            f"-{_MARK}: extrapolated to the steps named from runs of {section.run_steps} steps ({run_high} high-noise "
            f"and {run_low} low-noise, CFG truncation in proportion): each forward at the mean of its kind, expert and "
            "latent frames, in that "
            "run, solver steps likewise, the rest as it was; fewer steps from the baseline's run"
        )
    if section.offload:
        lines.append("- no run is the first: experts start on the host")
    figures = comparison(section)
    if not figures:
        return lines
    rows = [[cell(line) for cell in _COLUMNS.values()] for line in figures]
    return [*lines, "", Table(list(_COLUMNS), rows, (0, len(_COLUMNS) - 1)).markdown()]


def _marked(figures: Figures, value: float | None, form: str, unit: str = "") -> str:
    text = number(value, form, unit)
    return text + _MARK if text and figures.extrapolated else text
