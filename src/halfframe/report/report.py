"""The report of one finished run: what each expert computed, and would have computed without halfframe."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from itertools import groupby
from typing import Any

from halfframe.report.cost import Expert

__all__ = ["PhaseReport", "Report", "run_lengths", "text_table"]


@dataclass(frozen=True, slots=True)
class PhaseReport:
    """One expert's part of a run.

    Frame-steps count a frame once per step, in video frames, as in the source's tables. A forward pass is one call of
    the expert, so there are two per step with classifier-free guidance.

    Attributes:
        expert: ``"high"`` or ``"low"``.
        steps: steps in which this expert ran.
        passes: forward passes of the expert.
        passes_full: the same without halfframe.
        latent_frames: the different numbers of latent frames that the expert got, largest last.
        sequence_lengths: the padded token counts of these.
        frame_steps: video frames times steps, as run.
        frame_steps_full: the same with every frame computed.
        predicted_seconds: predicted for one H200, `halfframe.report.cost.H200`; None if the expert's sizes are unknown.
        predicted_seconds_full: the same without halfframe.
        seconds: measured time of the passes, with device synchronisation; None unless ``enabled(..., measure=True)``.
        passes_by_frames: pairs of a number of latent frames and the number of passes that computed it.
    """

    expert: Expert
    steps: int
    passes: int
    passes_full: int
    latent_frames: tuple[int, ...]
    sequence_lengths: tuple[int, ...]
    frame_steps: int
    frame_steps_full: int
    predicted_seconds: float | None = None
    predicted_seconds_full: float | None = None
    seconds: float | None = None
    passes_by_frames: tuple[tuple[int, int], ...] = ()


@dataclass(frozen=True, slots=True)
class Report:
    """What one run did. ``print(report)`` prints a table, `to_dict` returns plain data.

    Attributes:
        host: the adapter that served the pipeline.
        strategy: the strategy with its options, or the recipe.
        video_frames: video frames of the clip.
        latent_frames: latent frames of the clip.
        high: what the high-noise expert did.
        low: what the low-noise expert did.
        moves: the move at each step: ``"full"``, ``"merge:2"``, ``"full+cond"``, ``"reuse"``, ...
        switch_step: index of the first low-noise step; None if there was none.
        switch_sigma: noise level 0..1 at that step.
        total_seconds: wall time of the whole call of the pipeline.
        saved: whether any step computed fewer than all latent frames.
        guidance_truncated: whether any unconditional pass was skipped.
        note: why nothing was saved; empty otherwise.
    """

    host: str
    strategy: str
    video_frames: int
    latent_frames: int
    high: PhaseReport
    low: PhaseReport
    moves: tuple[str, ...]
    switch_step: int | None
    switch_sigma: float | None
    total_seconds: float
    saved: bool
    guidance_truncated: bool = False
    note: str = ""

    @property
    def notes(self) -> tuple[str, ...]:
        """Warnings about the run: no low-noise step, one computed frame for a whole clip, or no guidance at all."""
        found = []
        if self.high.steps and not self.low.steps:
            found.append("the schedule has no low-noise step, so that expert never ran; ask for more steps")
        if 1 in self.high.latent_frames and self.latent_frames > 2:
            found.append(f"a step computed 1 of {self.latent_frames} latent frames; use a smaller stride")
        without = [move.endswith("+cond") or move.startswith("reuse") for move in self.moves]
        if without and all(without) and self.guidance_truncated:
            found.append("no step computed the unconditional pass, so this is a clip without guidance")
        return tuple(found)

    @property
    def steps(self) -> int:
        """Steps of the run."""
        return self.high.steps + self.low.steps

    @property
    def frame_steps(self) -> int:
        """Video frames times steps, as run (the source's 668 for 49 frames, 13 + 7 steps)."""
        return self.high.frame_steps + self.low.frame_steps

    @property
    def frame_steps_full(self) -> int:
        """Video frames times steps without halfframe (the source's 980)."""
        return self.high.frame_steps_full + self.low.frame_steps_full

    @property
    def frame_steps_saved(self) -> float:
        """Share of the frame-steps that was skipped, 0..1 (the source's 31.8 %)."""
        return 1 - self.frame_steps / self.frame_steps_full if self.frame_steps_full else 0.0

    @property
    def predicted_speedup(self) -> float | None:
        """The experts' time on one H200 without halfframe, divided by that with it; None if their sizes are unknown."""
        phases = (self.high, self.low)
        run = sum(phase.predicted_seconds or 0.0 for phase in phases)
        return sum(phase.predicted_seconds_full or 0.0 for phase in phases) / run if run else None

    def to_dict(self) -> dict[str, Any]:
        """The report as plain data, ready for `json.dumps`, with derived figures."""
        data = asdict(self)
        for name in ("steps", "frame_steps", "frame_steps_full", "frame_steps_saved", "predicted_speedup"):
            data[name] = getattr(self, name)
        data["moves"] = list(self.moves)
        data["notes"] = list(self.notes)
        for phase in ("high", "low"):
            data[phase] = {k: list(v) if isinstance(v, tuple) else v for k, v in data[phase].items()}
            data[phase]["passes_by_frames"] = [list(pair) for pair in data[phase]["passes_by_frames"]]
        return data

    def summary(self) -> str:
        """One line, as logged, with the `notes`."""
        return "; note: ".join([self._summary(), *self.notes])

    def _summary(self) -> str:
        skipped = self.high.passes_full - self.high.passes + self.low.passes_full - self.low.passes
        passes = f", {skipped} forward pass{'es' if skipped > 1 else ''} skipped" if skipped else ""
        if not self.saved:
            return f"halfframe: nothing was skipped in time ({self.note}); {self.steps} steps at full length{passes}"
        speedup = f", predicted {self.predicted_speedup:.2f}x" if self.predicted_speedup else ""
        saved = f"{self.frame_steps_full} -> {self.frame_steps} frame-steps ({self.frame_steps_saved:.1%} saved)"
        return (
            f"halfframe: {self.strategy} on {self.host}: {self.high.steps} high-noise steps on "
            f"{_join(self.high.latent_frames)} of {self.latent_frames} latent frames, {self.low.steps} low-noise; "
            f"{saved}{passes}{speedup}; {self.total_seconds:.1f} s"
        )

    def __str__(self) -> str:
        head = [f"halfframe report: {self.strategy} on {self.host}, {self.video_frames} video frames"]
        if not self.saved:
            head.append(f"nothing was skipped in time: {self.note}")
        phases = (self.high, self.low)
        rows = [_row(phase) for phase in phases]
        full, run = (sum(getattr(phase, name) for phase in phases) for name in ("passes_full", "passes"))
        times = [
            [getattr(phase, name) for phase in phases]
            for name in ("predicted_seconds_full", "predicted_seconds", "seconds")
        ]
        totals = [None if None in values else sum(values) for values in times]
        rows.append(
            (
                "total",
                str(self.steps),
                _change(full, run),
                "",
                "",
                f"{self.frame_steps_full} -> {self.frame_steps}",
                _arrow(totals[0], totals[1]),
                _number(totals[2]),
            )
        )
        foot = f"frame-steps saved {self.frame_steps_saved:.1%}"
        if self.predicted_speedup:
            foot += f", predicted speed-up of the experts {self.predicted_speedup:.2f}x"
        if self.switch_step is not None and self.switch_sigma is not None:
            foot += f", expert switch at step {self.switch_step + 1} of {self.steps} (sigma {self.switch_sigma:.3f})"
        lines = [*head, text_table(_HEADER, rows), f"moves: {run_lengths(self.moves)}"]
        lines.append(f"{foot}, {self.total_seconds:.2f} s in all")
        lines += [f"note: {note}" for note in self.notes]
        return "\n".join(lines)


_HEADER = ("expert", "steps", "passes", "latent", "seq_len", "frame-steps", "H200 s", "measured s")


def text_table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Aligned columns, the first to the left."""
    lines = [header, *rows]
    widths = [max(len(line[i]) for line in lines) for i in range(len(header))]
    return "\n".join(
        "  ".join(cell.rjust(width) if i else cell.ljust(width) for i, (cell, width) in enumerate(columns)).rstrip()
        for columns in (list(zip(line, widths, strict=True)) for line in lines)
    )


def _change(full: int, run: int) -> str:
    return str(run) if full == run else f"{full} -> {run}"


def _row(phase: PhaseReport) -> tuple[str, ...]:
    return (
        f"{phase.expert}-noise",
        str(phase.steps),
        _change(phase.passes_full, phase.passes),
        _join(phase.latent_frames),
        _join(phase.sequence_lengths),
        f"{phase.frame_steps_full} -> {phase.frame_steps}",
        _arrow(phase.predicted_seconds_full, phase.predicted_seconds),
        _number(phase.seconds),
    )


def run_lengths(moves: tuple[str, ...]) -> str:
    """``3 x merge:2, full, 7 x full+cond``."""
    runs = [(label, len(list(group))) for label, group in groupby(moves)]
    return ", ".join(label if count == 1 else f"{count} x {label}" for label, count in runs) or "none"


def _join(values: tuple[int, ...]) -> str:
    return "/".join(str(value) for value in values) or "-"


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.4g}"


def _arrow(full: float | None, run: float | None) -> str:
    return "-" if full is None or run is None else f"{_number(full)} -> {_number(run)}"
