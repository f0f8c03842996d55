"""What a run would cost: the same counts as in a real run's report, computed from a schedule and shapes only."""

from __future__ import annotations

import dataclasses
import math
from collections import Counter
from typing import Any, Literal

from halfframe.errors import OptionError, is_count
from halfframe.plugins.configuration import guidance_of
from halfframe.plugins.strategies import DEFAULT_STRATEGY, StrategyLike, resolve_strategy
from halfframe.report.cost import A14B, H200, ExpertShape, Rates
from halfframe.report.meter import Meter
from halfframe.report.report import Report, run_lengths, text_table
from halfframe.sampling import frames
from halfframe.sampling.guidance import Guidance, GuidanceRule, settled, suffix_of
from halfframe.sampling.schedule import Schedule, experts_by_boundary, steps_of
from halfframe.sampling.strategy import Reuse, Step, Strategy, frames_of, label_of

__all__ = ["Plan", "plan"]


@dataclasses.dataclass(frozen=True, slots=True)
class Plan:
    """A planned run.

    Attributes:
        report: the counts that the run's report would have; its times are predicted, not measured.
        sequence_length_full: tokens of the full clip.
        note: how hosts round the requested number of video frames; empty if they do not.
    """

    report: Report
    sequence_length_full: int
    note: str = ""

    @property
    def seconds(self) -> tuple[float, float]:
        """Predicted seconds of the experts, (without, with) halfframe."""
        phases = (self.report.high, self.report.low)
        without, run = (
            sum(getattr(phase, name) for phase in phases) for name in ("predicted_seconds_full", "predicted_seconds")
        )
        return without, run

    @property
    def predicted_speedup(self) -> float:
        """The experts' time without halfframe, divided by their time with it."""
        return self.report.predicted_speedup or 1.0

    @property
    def gpu_hours(self) -> tuple[float, float]:
        """Predicted GPU-hours of the experts for 1,000 clips, (without, with) halfframe."""
        without, run = self.seconds
        return without * 1000 / 3600, run * 1000 / 3600

    def to_dict(self) -> dict[str, Any]:
        """The plan as plain data, ready for `json.dumps`."""
        report = self.report.to_dict()
        for name in ("total_seconds", "host"):
            del report[name]
        return {
            **report,
            "sequence_length_full": self.sequence_length_full,
            "frames_note": self.note,
            "seconds": list(self.seconds),
            "gpu_hours_per_1000_clips": list(self.gpu_hours),
            "predicted_speedup": self.predicted_speedup,
        }

    def __str__(self) -> str:
        report = self.report
        rows = [
            (
                f"{phase.expert}-noise",
                str(phase.steps),
                f"{phase.passes_full} -> {phase.passes}",
                f"{report.latent_frames} -> {'/'.join(map(str, phase.latent_frames)) or '-'}",
                f"{self.sequence_length_full} -> {'/'.join(map(str, phase.sequence_lengths)) or '-'}",
                f"{phase.frame_steps_full} -> {phase.frame_steps}",
                f"{phase.predicted_seconds_full or 0:.1f} -> {phase.predicted_seconds or 0:.1f}",
            )
            for phase in (report.high, report.low)
        ]
        passes = [sum(getattr(p, name) for p in (report.high, report.low)) for name in ("passes_full", "passes")]
        rows.append(
            (
                "total",
                str(report.steps),
                f"{passes[0]} -> {passes[1]}",
                "",
                "",
                f"{report.frame_steps_full} -> {report.frame_steps}",
                "{:.1f} -> {:.1f}".format(*self.seconds),
            )
        )
        head = [f"plan: {report.strategy}, {report.video_frames} video frames, {report.latent_frames} latent frames"]
        if self.note:
            head.append(self.note)
        if not report.saved:
            head.append(f"nothing is skipped in time: {report.note}")
        header = ("expert", "steps", "passes", "latent frames", "tokens", "frame-steps", "seconds")
        return "\n".join(
            [
                *head,
                text_table(header, rows),
                f"moves: {run_lengths(report.moves)}",
                f"frame-steps saved {report.frame_steps_saved:.1%}; predicted speed-up of the experts "
                f"{self.predicted_speedup:.2f}x (text encoder, VAE and scheduler are not in it)",
                "GPU-hours per 1,000 clips on H200s {:.1f} -> {:.1f}".format(*self.gpu_hours),
            ]
        )


def plan(
    *,
    size: tuple[int, int] = (1280, 720),
    frame_num: int = 81,
    sampling_steps: int = 40,
    shift: float = 12.0,
    sample_solver: Literal["unipc", "dpm++"] = "unipc",
    boundary: float = 0.875,
    strategy: StrategyLike = DEFAULT_STRATEGY,
    guidance: Guidance | None = None,
    guided: bool = True,
    expert_shape: ExpertShape = A14B,
    group_size: int = 1,
    rates: Rates = H200,
    **options: Any,
) -> Plan:
    """What ``generate`` with these arguments would compute, without and with halfframe; no model is loaded.

    Args:
        size: (width, height) in pixels, multiples of 16.
        frame_num: video frames; if it is not 4n+1, it is rounded as in the official package.
        sampling_steps: number of scheduler steps.
        shift: shift of the schedule.
        sample_solver: ``"unipc"`` or ``"dpm++"``.
        boundary: 0..1; 0.875 for T2V-A14B, 0.9 for I2V-A14B.
        strategy: as for `halfframe.enabled`.
        guidance: as for `halfframe.enabled`.
        guided: whether a step has two forward passes; with distilled experts it has one.
        expert_shape: the experts' sizes.
        group_size: size of the sequence-parallel group; tokens are padded to a multiple of it.
        rates: the speed of a machine, for predicted seconds; by default that of one H200.
        **options: options of the strategy.

    Raises:
        OptionError: unusable sizes or counts.
        StrategyError: as `halfframe.enabled`.
    """
    width, height = size
    if width < 16 or height < 16 or width % 16 or height % 16:
        raise OptionError(f"size must be in multiples of 16 pixels, got {width}x{height}.")
    if not 0 <= boundary <= 1:
        raise OptionError(f"boundary must be in 0..1, got {boundary}; T2V-A14B has 0.875, I2V-A14B 0.9.")
    if not (shift > 0 and math.isfinite(shift)):
        raise OptionError(f"shift must be a positive number, got {shift}; T2V-A14B is run with 12, I2V-A14B with 5.")
    if not is_count(sampling_steps, 1):
        raise OptionError(f"sampling_steps must be an integer >= 1, got {sampling_steps!r}.")
    resolved = resolve_strategy(strategy, options)
    rule = guidance_of(resolved, guidance)
    latent_frames = frames.latent_frame_count(frame_num)
    made = frames.video_frame_count(latent_frames)
    per_frame = (width // 16) * (height // 16)
    full = frames.sequence_length(latent_frames, per_frame, group_size)
    schedule = Schedule.plan(_steps(sampling_steps, shift, sample_solver, boundary, latent_frames), resolved)

    meter = Meter(expert_shape, 4, False, rates)
    computed: Counter[str] = Counter()  # how many steps of an expert computed both passes
    for step, move in zip(schedule.steps, schedule.moves, strict=True):
        count = frames_of(move, latent_frames)
        length = frames.sequence_length(count, per_frame, group_size)
        suffix = ""
        for number in range(2 if guided else 1):
            asked: GuidanceRule = rule.at(step) if number and not isinstance(move, Reuse) else "both"
            asked = settled(asked, computed[step.expert])
            suffix = suffix_of(asked)
            if asked != "both" or not count:
                meter.skip(step.expert, full, 1)
            else:
                meter.forward(step.expert, count, length, full, 1, 0.0)
        if guided and count and not suffix:
            computed[step.expert] += 1
        meter.step(step.expert, count, label_of(move) + suffix)
    switch = next((step for step in schedule.steps if step.expert == "low" and step.index), None)
    report = meter.report(
        host="plan",
        strategy=str(resolved),
        latent_frames=latent_frames,
        switch=None if switch is None else (switch.index, switch.sigma),
        why_not=_why_not(resolved, schedule.steps, latent_frames, boundary),
    )
    return Plan(report, full, _rounded(frame_num, made))


def _rounded(asked: int, made: int) -> str:
    """What hosts make of a number of video frames that is not 4n+1."""
    if asked == made:
        return ""
    return (
        f"{asked} video frames are not 4n+1: the official package makes {made}, which is planned here; diffusers makes "
        f"{asked // 4 * 4 + 1}"
    )


def _steps(steps: int, shift: float, solver: str, boundary: float, num_frames: int) -> list[Step]:
    """The steps of upstream's schedulers: sigma evenly spaced, then shifted; timesteps are truncated."""
    start = 0.999 if solver == "unipc" else 1.0  # UniPC starts at 0.999, DPM++ at 1
    even = [start * (1 - i / steps) for i in range(steps)]
    sigmas = [shift * sigma / (1 + (shift - 1) * sigma) for sigma in even]
    timesteps = [float(math.floor(1000 * sigma)) for sigma in sigmas]
    like = Step(0, 0, 0.0, 0.0, "high", 0, 0, num_frames, boundary * 1000)
    return steps_of(timesteps, sigmas, experts_by_boundary(timesteps, boundary * 1000), like)


def _why_not(strategy: Strategy, steps: tuple[Step, ...], latent_frames: int, boundary: float) -> str:
    if latent_frames == 1:
        return "the clip has 1 latent frame"
    if not any(step.expert == "high" for step in steps):
        return f"no timestep of the schedule reaches the boundary {boundary:g}"
    return f"strategy {strategy.name!r} skips no frame"
