"""The report of one finished run: what each expert computed, beside what it would have computed."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from typing import Any

from halfframe.strategies.base import Expert, Noise

__all__ = ["PhaseReport", "Report"]


@dataclass(frozen=True, slots=True)
class PhaseReport:
    """One expert's part of a run.

    Frame-steps count a frame once per step, in video frames as the source's tables do; a forward is one call of the
    expert, so classifier-free guidance makes two of them per step.

    Attributes:
        expert: ``"high"`` or ``"low"``.
        steps: solver steps in which this expert ran.
        forwards: calls of the expert.
        forwards_full: the same with guidance at every step.
        latent_frames: distinct numbers of latent frames the expert was given, largest last.
        sequence_lengths: the padded token counts that go with them.
        frame_steps: video frames times steps, as run.
        frame_steps_full: the same with every frame computed.
        tflops: arithmetic of this phase as run, in 1e12 operations; None where the expert's sizes are unknown.
        tflops_full: the same with every frame computed.
        predicted_seconds: `tflops` at the rate given as ``enabled(..., tflops=...)``; None without it.
        predicted_seconds_full: `tflops_full` at that rate.
        seconds: measured in the expert's forwards, device synchronised; None unless ``enabled(..., measure=True)``.
    """

    expert: Expert
    steps: int
    forwards: int
    forwards_full: int
    latent_frames: tuple[int, ...]
    sequence_lengths: tuple[int, ...]
    frame_steps: int
    frame_steps_full: int
    tflops: float | None = None
    tflops_full: float | None = None
    predicted_seconds: float | None = None
    predicted_seconds_full: float | None = None
    seconds: float | None = None


@dataclass(frozen=True, slots=True)
class Report:
    """What one run did. ``print(report)`` is a table, `to_dict` plain data.

    Attributes:
        host: the adapter that served the pipeline.
        strategy: the strategy's name.
        options: the strategy's options.
        noise: ``"full"`` or ``"short"``.
        video_frames: video frames of the clip.
        latent_frames: latent frames of the clip.
        high: what the high-noise expert did.
        low: what the low-noise expert did.
        switch_step: index of the first low-noise step; None if the schedule never got there.
        switch_sigma: noise level 0..1 at that step.
        total_seconds: wall time of the whole call, from the host's entry to its return.
        halved: whether any expert call computed fewer than all latent frames.
        guidance_truncated: whether any unconditional forward was left out.
        note: why nothing was halved; empty otherwise.
        preload: how the low-noise expert came in: ``"overlapped"``, ``"at the switch: <why not overlapped>"`` or
            ``"off: <reason>"``; None unless ``enabled(..., preload=True)``.
    """

    host: str
    strategy: str
    noise: Noise
    video_frames: int
    latent_frames: int
    high: PhaseReport
    low: PhaseReport
    switch_step: int | None
    switch_sigma: float | None
    total_seconds: float
    halved: bool
    guidance_truncated: bool = False
    note: str = ""
    preload: str | None = None
    options: Mapping[str, Any] = field(default_factory=dict)

    @property
    def steps(self) -> int:
        """Solver steps of the run."""
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
        """Share of the frame-steps that was left out, 0..1 (the source's 31.8 %)."""
        return 1 - self.frame_steps / self.frame_steps_full if self.frame_steps_full else 0.0

    @property
    def predicted_speedup(self) -> float | None:
        """Ratio of the experts' arithmetic without and with halfframe; None where their sizes are unknown."""
        parts = (self.high.tflops, self.low.tflops, self.high.tflops_full, self.low.tflops_full)
        if any(part is None for part in parts):
            return None
        high, low, high_full, low_full = (part or 0.0 for part in parts)
        return (high_full + low_full) / (high + low) if high + low else None

    def to_dict(self) -> dict[str, Any]:
        """The report as plain data that `json.dumps` takes, derived figures included."""
        data = asdict(replace(self, options={}))  # asdict copies deeply, and not everything can be copied
        data["options"] = {key: _plain(value) for key, value in self.options.items()}
        for name in ("steps", "frame_steps", "frame_steps_full", "frame_steps_saved", "predicted_speedup"):
            data[name] = getattr(self, name)
        if self.preload is None:
            del data["preload"]
        for phase in ("high", "low"):
            data[phase] = {k: list(v) if isinstance(v, tuple) else v for k, v in data[phase].items()}
        return data

    def summary(self) -> str:
        """One line, as logged."""
        left_out = self.high.forwards_full - self.high.forwards + self.low.forwards_full - self.low.forwards
        guidance = f", {left_out} unconditional forward{'s' if left_out > 1 else ''} left out" if left_out else ""
        if not self.halved:
            return f"halfframe: nothing was halved ({self.note}); {self.steps} steps at full length{guidance}"
        speedup = f", predicted {self.predicted_speedup:.2f}x" if self.predicted_speedup else ""
        saved = f"{self.frame_steps_full} -> {self.frame_steps} frame-steps ({self.frame_steps_saved:.1%} saved)"
        return (
            f"halfframe: {self.strategy} on {self.host}: {self.high.steps} high-noise steps on "
            f"{_join(self.high.latent_frames)} of {self.latent_frames} latent frames, {self.low.steps} low-noise; "
            f"{saved}{guidance}{speedup}; {self.total_seconds:.1f} s"
        )

    def __str__(self) -> str:
        head = f"halfframe report: {self.strategy} on {self.host}, {self.video_frames} video frames, noise {self.noise}"
        if not self.halved:
            head += f"\nnothing was halved: {self.note}"
        rows = [_HEADER, *(_row(phase) for phase in (self.high, self.low)), self._total_row()]
        widths = [max(len(row[i]) for row in rows) for i in range(len(_HEADER))]
        table = [
            "  ".join(
                cell.ljust(w) if i == 0 else cell.rjust(w) for i, (cell, w) in enumerate(zip(row, widths, strict=True))
            )
            for row in rows
        ]
        speedup = self.predicted_speedup
        foot = f"frame-steps saved {self.frame_steps_saved:.1%}"
        if speedup:
            foot += f", predicted speed-up of the experts {speedup:.2f}x"
        if self.switch_step is not None and self.switch_sigma is not None:
            foot += f", expert switch at step {self.switch_step + 1} of {self.steps} (sigma {self.switch_sigma:.3f})"
        foot += f", {self.total_seconds:.2f} s in all"
        if self.preload is not None:
            foot += f"\npreload {self.preload}"
        return "\n".join([head, *table, foot])

    def _total_row(self) -> tuple[str, ...]:
        phases = (self.high, self.low)

        def total(name: str) -> float | None:
            values = [getattr(phase, name) for phase in phases]
            return None if any(value is None for value in values) else sum(values)

        return (
            "total",
            str(self.steps),
            _change(self.high.forwards_full + self.low.forwards_full, self.high.forwards + self.low.forwards),
            "",
            "",
            f"{self.frame_steps_full} -> {self.frame_steps}",
            _arrow(total("tflops_full"), total("tflops")),
            _arrow(total("predicted_seconds_full"), total("predicted_seconds")),
            _number(total("seconds")),
        )


_HEADER = ("expert", "steps", "forwards", "latent", "seq_len", "frame-steps", "TFLOP", "predicted s", "measured s")


def _row(phase: PhaseReport) -> tuple[str, ...]:
    return (
        f"{phase.expert}-noise",
        str(phase.steps),
        _change(phase.forwards_full, phase.forwards),
        _join(phase.latent_frames),
        _join(phase.sequence_lengths),
        f"{phase.frame_steps_full} -> {phase.frame_steps}",
        _arrow(phase.tflops_full, phase.tflops),
        _arrow(phase.predicted_seconds_full, phase.predicted_seconds),
        _number(phase.seconds),
    )


def _change(full: int, run: int) -> str:
    return str(run) if full == run else f"{full} -> {run}"


def _join(values: tuple[int, ...]) -> str:
    return "/".join(str(value) for value in values) or "-"


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.4g}"


def _arrow(full: float | None, run: float | None) -> str:
    return "-" if full is None or run is None else f"{_number(full)} -> {_number(run)}"


def _plain(value: Any) -> Any:
    return value if isinstance(value, str | int | float | bool | type(None)) else repr(value)
