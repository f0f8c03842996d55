"""Counting a run: what each expert was given, and the report that comes of it."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch

from halfframe import frames
from halfframe.cost import ExpertShape
from halfframe.report import PhaseReport, Report
from halfframe.strategies.base import Expert, Noise, Step

__all__ = ["Meter", "clock"]


def clock(device: torch.device, synchronize: bool) -> float:
    """Seconds, after the device has done what it was asked to if `synchronize`."""
    if synchronize and device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter()


@dataclass(slots=True)
class _Phase:
    steps: int = 0
    forwards: int = 0
    skipped: int = 0
    lengths: dict[int, int] = field(default_factory=dict)
    frame_steps: int = 0
    flops: int = 0
    flops_full: int = 0
    seconds: float = 0.0


class Meter:
    """Counts forwards and steps of both experts, in the units of `PhaseReport`.

    Args:
        expert_shape: the experts' sizes; None if unknown, and no FLOPs are counted.
        temporal_stride: video frames per latent frame.
        tflops: rate for predicted seconds, 1e12 operations per second; None for none.
        measured: whether the seconds handed to `forward` were measured.
    """

    def __init__(
        self, expert_shape: ExpertShape | None, temporal_stride: int, tflops: float | None, measured: bool
    ) -> None:
        self._expert_shape = expert_shape
        self._temporal_stride = temporal_stride
        self._tflops = tflops
        self._measured = measured
        self._started = time.perf_counter()
        self._phases: dict[Expert, _Phase] = {"high": _Phase(), "low": _Phase()}

    def forward(
        self, expert: Expert, latent_frames: int, sequence_length: int, full_length: int, clips: int, seconds: float
    ) -> None:
        """`expert` ran on `latent_frames` frames of `clips` clips each, `sequence_length` tokens for `full_length`."""
        phase = self._phases[expert]
        phase.forwards += 1
        phase.lengths[latent_frames] = sequence_length
        if self._expert_shape is not None:
            phase.flops += clips * self._expert_shape.forward_flops(sequence_length)
            phase.flops_full += clips * self._expert_shape.forward_flops(full_length)
        phase.seconds += seconds

    def skip(self, expert: Expert, full_length: int, clips: int) -> None:
        """A forward of `expert` over `full_length` tokens of `clips` clips was left out."""
        phase = self._phases[expert]
        phase.skipped += 1
        if self._expert_shape is not None:
            phase.flops_full += clips * self._expert_shape.forward_flops(full_length)

    def step(self, expert: Expert, latent_frames: int) -> None:
        """A solver step ended in which `expert` computed `latent_frames` frames."""
        phase = self._phases[expert]
        phase.steps += 1
        phase.frame_steps += self._video_frames(latent_frames)

    def report(
        self,
        *,
        host: str,
        strategy: str,
        options: Mapping[str, Any],
        noise: Noise,
        latent_frames: int,
        switch: Step | None,
        why_not: str,
        preload: str | None = None,
    ) -> Report:
        """The report of the run so far; `why_not` is its note if nothing was halved."""
        high, low = (self._phase(expert, latent_frames) for expert in self._phases)
        halved = any(count < latent_frames for phase in (high, low) for count in phase.latent_frames)
        return Report(
            host=host,
            strategy=strategy,
            options=dict(options),
            noise=noise,
            video_frames=self._video_frames(latent_frames),
            latent_frames=latent_frames,
            high=high,
            low=low,
            switch_step=None if switch is None else switch.index,
            switch_sigma=None if switch is None else switch.sigma,
            total_seconds=time.perf_counter() - self._started,
            halved=halved,
            guidance_truncated=any(phase.forwards < phase.forwards_full for phase in (high, low)),
            note="" if halved else why_not,
            preload=preload,
        )

    def _phase(self, expert: Expert, latent_frames: int) -> PhaseReport:
        phase = self._phases[expert]
        known = self._expert_shape is not None
        tflops = phase.flops / 1e12 if known else None
        tflops_full = phase.flops_full / 1e12 if known else None
        counts = sorted(phase.lengths)
        return PhaseReport(
            expert=expert,
            steps=phase.steps,
            forwards=phase.forwards,
            forwards_full=phase.forwards + phase.skipped,
            latent_frames=tuple(counts),
            sequence_lengths=tuple(phase.lengths[count] for count in counts),
            frame_steps=phase.frame_steps,
            frame_steps_full=phase.steps * self._video_frames(latent_frames),
            tflops=tflops,
            tflops_full=tflops_full,
            predicted_seconds=self._seconds(tflops),
            predicted_seconds_full=self._seconds(tflops_full),
            seconds=phase.seconds if self._measured else None,
        )

    def _seconds(self, tflops: float | None) -> float | None:
        return tflops / self._tflops if tflops is not None and self._tflops is not None else None

    def _video_frames(self, latent_frames: int) -> int:
        return frames.video_frame_count(latent_frames, self._temporal_stride) if latent_frames else 0
