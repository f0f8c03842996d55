"""What a run would cost: the same bookkeeping as a real run's report, from a schedule and shapes alone."""

from __future__ import annotations

import dataclasses
import math
from typing import Any, Literal

import torch

from halfframe import frames
from halfframe.context import DEFAULT_STRATEGY, chosen_by_preset
from halfframe.cost import A14B, ExpertShape, Rates
from halfframe.errors import HalfframeError, OptionError
from halfframe.guidance import GuidanceMode, GuidanceTruncation
from halfframe.meter import Meter
from halfframe.plugins import requested_strategy
from halfframe.presets import PresetName
from halfframe.report import Report
from halfframe.schedule import Schedule
from halfframe.strategies.base import ExpandFunction, Strategy

__all__ = ["Plan", "plan"]


@dataclasses.dataclass(frozen=True, slots=True)
class Plan:
    """A planned run.

    Attributes:
        report: the counts that the run's report would have; its times are of planning.
        sequence_length_full: tokens of the full clip.
        linear_tflops: arithmetic linear in the tokens, (without, with), 1e12 operations.
        attention_tflops: self-attention's arithmetic, quadratic in the tokens, (without, with), 1e12 operations.
        schedule: where the split between the experts is from, ``"wan"`` (its own solver) or ``"formula"``.
        seconds: of the experts, (without, with), at the machine's rates; None if none were given.
    """

    report: Report
    sequence_length_full: int
    linear_tflops: tuple[float, float]
    attention_tflops: tuple[float, float]
    schedule: str
    seconds: tuple[float, float] | None = None

    @property
    def predicted_speedup(self) -> float:
        """The experts' time without halfframe over that with it; of their arithmetic, if no rates were given."""
        if self.seconds is not None:
            without, run = self.seconds
            return without / run
        return self.report.predicted_speedup or 1.0

    def to_dict(self) -> dict[str, Any]:
        """The plan as plain data that `json.dumps` takes."""
        report = self.report.to_dict()
        for name in ("total_seconds", "host", "note"):
            del report[name]
        return {
            **report,
            "sequence_length_full": self.sequence_length_full,
            "linear_tflops": list(self.linear_tflops),
            "attention_tflops": list(self.attention_tflops),
            "schedule": self.schedule,
            "seconds": None if self.seconds is None else list(self.seconds),
            "predicted_speedup": self.predicted_speedup,
        }

    def __str__(self) -> str:
        report = self.report
        origin = "wan's own solver" if self.schedule == "wan" else "the solvers' formula (wan is not importable here)"
        rows = [("", "steps", "forwards", "latent frames", "tokens", "frame-steps", "TFLOP")]
        phases = (report.high, report.low)
        for phase in phases:
            rows.append(
                (
                    f"{phase.expert}-noise",
                    str(phase.steps),
                    f"{phase.forwards_full} -> {phase.forwards}",
                    f"{report.latent_frames} -> {'/'.join(map(str, phase.latent_frames)) or '-'}",
                    f"{self.sequence_length_full} -> {'/'.join(map(str, phase.sequence_lengths)) or '-'}",
                    f"{phase.frame_steps_full} -> {phase.frame_steps}",
                    f"{phase.tflops_full or 0:.0f} -> {phase.tflops or 0:.0f}",
                )
            )
        full = sum(phase.tflops_full or 0 for phase in phases)
        run = sum(phase.tflops or 0 for phase in phases)
        rows.append(
            (
                "total",
                str(report.steps),
                f"{sum(p.forwards_full for p in phases)} -> {sum(p.forwards for p in phases)}",
                "",
                "",
                f"{report.frame_steps_full} -> {report.frame_steps}",
                f"{full:.0f} -> {run:.0f}",
            )
        )
        widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
        table = ["  ".join(cell.rjust(width) for cell, width in zip(row, widths, strict=True)) for row in rows]
        (linear, linear_run), (attention, attention_run) = self.linear_tflops, self.attention_tflops
        seconds = []
        if self.seconds is not None:
            seconds.append(f"experts' seconds at the machine's rates {self.seconds[0]:.1f} -> {self.seconds[1]:.1f}")
        return "\n".join(
            [
                f"plan: {report.strategy}, {report.video_frames} video frames, {report.latent_frames} latent frames",
                *([] if report.halved else [f"nothing is halved: {report.note}"]),
                *table,
                f"linear terms {linear:.0f} -> {linear_run:.0f} TFLOP, attention {attention:.0f} -> "
                f"{attention_run:.0f} TFLOP",
                *seconds,
                f"frame-steps saved {report.frame_steps_saved:.1%}; predicted speed-up of the experts "
                f"{self.predicted_speedup:.2f}x (text encoder, VAE and solver are not in it)",
                f"split {report.high.steps} + {report.low.steps} from {origin}",
            ]
        )


@dataclasses.dataclass(slots=True)
class _Table:
    """A schedule as a solver carries it."""

    timesteps: torch.Tensor
    sigmas: torch.Tensor

    def step(self, *_: Any, **__: Any) -> Any:
        raise HalfframeError("a planned schedule has no solver behind it.")


def plan(
    *,
    size: tuple[int, int] = (1280, 720),
    frame_num: int = 81,
    sampling_steps: int = 40,
    shift: float = 12.0,
    sample_solver: Literal["unipc", "dpm++"] = "unipc",
    boundary: float = 0.875,
    strategy: str | Strategy | ExpandFunction | None = DEFAULT_STRATEGY,
    cfg_truncate_steps: int = 0,
    cfg_truncate_high_noise_steps: int = 0,
    cfg_mode: GuidanceMode = "conditional",
    cfg_every: int = 1,
    guidance: bool = True,
    expert_shape: ExpertShape = A14B,
    group_size: int = 1,
    rates: Rates | None = None,
    preset: PresetName | None = None,
    **options: Any,
) -> Plan:
    """What ``generate`` with these arguments would compute, without and with halfframe; no model is loaded.

    Args:
        size: (width, height) in pixels, multiples of 16.
        frame_num: video frames, 4n+1.
        sampling_steps: solver steps.
        shift: of the schedule.
        sample_solver: ``"unipc"`` or ``"dpm++"``.
        boundary: 0..1; 0.875 for T2V-A14B, 0.9 for I2V-A14B.
        strategy: as for `halfframe.enabled`.
        cfg_truncate_steps: as for `halfframe.enabled`.
        cfg_truncate_high_noise_steps: as for `halfframe.enabled`.
        cfg_mode: as for `halfframe.enabled`.
        cfg_every: as for `halfframe.enabled`.
        guidance: whether a step has two forwards.
        expert_shape: the experts' sizes.
        group_size: sequence-parallel group, to whose multiple tokens are padded.
        rates: of a machine, for seconds and a speed-up in time: `halfframe.cost.H200`, or ones of your own.
        preset: as for `halfframe.enabled`.
        **options: the strategy's own.

    Raises:
        OptionError: unusable sizes or counts.
        StrategyError: as `halfframe.enabled`.
    """
    width, height = size
    if width < 16 or height < 16 or width % 16 or height % 16:
        raise OptionError(f"size {width}x{height} is not made of 16x16 pixel tokens; give multiples of 16.")
    frames.require_whole_groups(frame_num)
    if not 0 <= boundary <= 1:
        raise OptionError(f"boundary {boundary} is outside 0..1; T2V-A14B has 0.875, I2V-A14B 0.9.")
    if not (shift > 0 and math.isfinite(shift)):
        raise OptionError(f"shift {shift} is no positive number; T2V-A14B is run with 12, I2V-A14B with 5.")
    if sampling_steps < 1:
        raise OptionError(f"{sampling_steps} sampling steps are none; give 1 or more.")
    truncation = GuidanceTruncation(cfg_truncate_steps, cfg_truncate_high_noise_steps, cfg_mode, cfg_every)
    if preset is not None:
        strategy, options, truncation = chosen_by_preset(preset, strategy, options, truncation)
    resolved = requested_strategy(strategy, options)
    latent_frames = frames.latent_frame_count(frame_num)
    per_frame = (width // 16) * (height // 16)
    full = frames.sequence_length(latent_frames, per_frame, group_size)
    table, origin = _table(sampling_steps, shift, sample_solver)
    resolved.begin(latent_frames)
    schedule = Schedule.plan(table, boundary * 1000, latent_frames, resolved.select, (), resolved.name)

    meter = Meter(expert_shape, 4, None, False)
    linear, attention = [0, 0], [0, 0]
    for step, kept in zip(schedule.steps, schedule.kept, strict=True):
        count = latent_frames if kept is None else len(kept)
        length = frames.sequence_length(count, per_frame, group_size)
        for forward in range(2 if guidance else 1):
            made = not (forward and truncation.covers(step))
            if made:
                meter.forward(step.expert, count, length, full, 1, 0.0)
            else:
                meter.skip(step.expert, full, 1)
            for index, tokens in enumerate((full, length if made else 0)):
                linear[index] += expert_shape.linear_flops(tokens)
                attention[index] += expert_shape.attention_flops(tokens)
        meter.step(step.expert, count)
    switch = next((step for step in schedule.steps if step.expert == "low" and step.index), None)
    report = meter.report(
        host="plan",
        strategy=resolved.name,
        options=options,
        noise="full",
        latent_frames=latent_frames,
        switch=switch,
        why_not=(
            "the clip has 1 latent frame"
            if latent_frames == 1
            else f"no timestep of the schedule reaches the boundary {boundary:g}"
            if not any(step.expert == "high" for step in schedule.steps)
            else f"strategy {resolved.name!r} leaves out no frame"
        ),
    )
    return Plan(
        report=report,
        sequence_length_full=full,
        linear_tflops=(linear[0] / 1e12, linear[1] / 1e12),
        attention_tflops=(attention[0] / 1e12, attention[1] / 1e12),
        schedule=origin,
        seconds=None
        if rates is None
        else (rates.seconds(linear[0], attention[0]), rates.seconds(linear[1], attention[1])),
    )


def _table(steps: int, shift: float, solver: str) -> tuple[_Table, str]:
    """Timesteps and sigmas, from wan's own solver where it can be imported, else from the formula it uses."""
    try:
        return _wan_table(steps, shift, solver), "wan"
    except (HalfframeError, ImportError):
        # Both space sigma evenly before shifting it and truncate timesteps; UniPC starts at 0.999, DPM++ at 1.
        start = 0.999 if solver == "unipc" else 1.0
        even = [start * (1 - i / steps) for i in range(steps)]
        sigmas = [shift * sigma / (1 + (shift - 1) * sigma) for sigma in even]
        timesteps = [math.floor(1000 * sigma) for sigma in sigmas]
        return _Table(torch.tensor(timesteps), torch.tensor([*sigmas, 0.0])), "formula"


def _wan_table(steps: int, shift: float, solver: str) -> _Table:
    from halfframe.testing import import_wan

    if solver == "unipc":
        unipc = import_wan("utils.fm_solvers_unipc").FlowUniPCMultistepScheduler(shift=1, use_dynamic_shifting=False)
        unipc.set_timesteps(steps, device="cpu", shift=shift)
        return _Table(unipc.timesteps, unipc.sigmas)
    module = import_wan("utils.fm_solvers")
    dpm = module.FlowDPMSolverMultistepScheduler(shift=1, use_dynamic_shifting=False)
    module.retrieve_timesteps(dpm, device="cpu", sigmas=module.get_sampling_sigmas(steps, shift))
    return _Table(dpm.timesteps, dpm.sigmas)
