"""Counting a run: what each expert was given, and the report that comes of it."""

from __future__ import annotations

import time
from collections import Counter
from dataclasses import dataclass, field

import torch

from halfframe.report.cost import H200, Expert, ExpertShape, Rates
from halfframe.report.report import PhaseReport, Report

__all__ = ["Meter", "clock"]


def clock(device: torch.device, synchronize: bool) -> float:
    """Seconds, after the device has done what it was asked to if `synchronize`."""
    if synchronize and device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter()


@dataclass(slots=True)
class _Phase:
    steps: int = 0
    passes: int = 0
    skipped: int = 0
    lengths: dict[int, int] = field(default_factory=dict)
    by_frames: Counter[int] = field(default_factory=Counter)
    frame_steps: int = 0
    predicted: float = 0.0
    predicted_full: float = 0.0
    seconds: float = 0.0


class Meter:
    """Counts forward passes and steps of both experts, in the units of `PhaseReport`.

    Args:
        expert_shape: the experts' sizes; None if unknown, and no time is predicted.
        temporal_stride: video frames per latent frame.
        measured: whether the seconds handed to `forward` were measured.
        rates: of the machine that time is predicted for.
    """

    def __init__(
        self, expert_shape: ExpertShape | None, temporal_stride: int, measured: bool, rates: Rates = H200
    ) -> None:
        self._expert_shape = expert_shape
        self._temporal_stride = temporal_stride
        self._measured = measured
        self._rates = rates
        self._started = time.perf_counter()
        self._phases: dict[Expert, _Phase] = {"high": _Phase(), "low": _Phase()}
        self._moves: list[str] = []

    def forward(
        self, expert: Expert, latent_frames: int, sequence_length: int, full_length: int, clips: int, seconds: float
    ) -> None:
        """`expert` ran on `latent_frames` frames of `clips` clips each, `sequence_length` tokens for `full_length`."""
        phase = self._phases[expert]
        phase.passes += 1
        phase.lengths[latent_frames] = sequence_length
        phase.by_frames[latent_frames] += 1
        phase.seconds += seconds
        if self._expert_shape is not None:
            predicted = clips * self._expert_shape.seconds(sequence_length, self._rates)
            phase.predicted += predicted
            full = sequence_length == full_length
            phase.predicted_full += predicted if full else clips * self._expert_shape.seconds(full_length, self._rates)

    def skip(self, expert: Expert, full_length: int, clips: int) -> None:
        """A forward pass of `expert` over `full_length` tokens of `clips` clips was skipped."""
        phase = self._phases[expert]
        phase.skipped += 1
        if self._expert_shape is not None:
            phase.predicted_full += clips * self._expert_shape.seconds(full_length, self._rates)

    def step(self, expert: Expert, latent_frames: int, label: str) -> None:
        """A step ended in which `expert` computed `latent_frames` frames; `label` says what was done."""
        phase = self._phases[expert]
        phase.steps += 1
        phase.frame_steps += self._video_frames(latent_frames)
        self._moves.append(label)

    def report(
        self,
        *,
        host: str,
        strategy: str,
        latent_frames: int,
        switch: tuple[int, float] | None,
        why_not: str,
    ) -> Report:
        """The report of the run so far.

        Args:
            host: name of the adapter.
            strategy: with its options.
            latent_frames: of the full clip.
            switch: index of the first low-noise step, and sigma there.
            why_not: the report's note if nothing was skipped.
        """
        high, low = (self._phase(expert, latent_frames) for expert in self._phases)
        saved = high.frame_steps + low.frame_steps < high.frame_steps_full + low.frame_steps_full
        return Report(
            host=host,
            strategy=strategy,
            video_frames=self._video_frames(latent_frames),
            latent_frames=latent_frames,
            high=high,
            low=low,
            moves=tuple(self._moves),
            switch_step=None if switch is None else switch[0],
            switch_sigma=None if switch is None else switch[1],
            total_seconds=time.perf_counter() - self._started,
            saved=saved,
            guidance_truncated=any("+" in move for move in self._moves),
            note="" if saved else why_not,
        )

    def _phase(self, expert: Expert, latent_frames: int) -> PhaseReport:
        phase = self._phases[expert]
        known = self._expert_shape is not None
        counts = sorted(phase.lengths)
        return PhaseReport(
            expert=expert,
            steps=phase.steps,
            passes=phase.passes,
            passes_full=phase.passes + phase.skipped,
            latent_frames=tuple(counts),
            sequence_lengths=tuple(phase.lengths[count] for count in counts),
            frame_steps=phase.frame_steps,
            frame_steps_full=phase.steps * self._video_frames(latent_frames),
            predicted_seconds=phase.predicted if known else None,
            predicted_seconds_full=phase.predicted_full if known else None,
            seconds=phase.seconds if self._measured else None,
            passes_by_frames=tuple(sorted(phase.by_frames.items())),
        )

    def _video_frames(self, latent_frames: int) -> int:
        return (latent_frames - 1) * self._temporal_stride + 1 if latent_frames else 0
