"""Clocks: around the parts of a run, and around single forwards."""

from __future__ import annotations

import contextlib
import functools
import resource
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from typing import Any
from unittest import mock

import torch
from torch import Tensor

import halfframe
from _parallel import Group
from _pipelines import Host, Spot
from _steps import EXPERTS, Forwards, Run
from _variants import Clip
from halfframe.report.meter import clock
from halfframe.sampling import frames

__all__ = ["Timed", "alone", "measured"]


class Timed:
    """One timed call of a pipeline.

    Attributes:
        run: what was measured.
        latents: what was decoded, on the CPU in float32; None where nothing was.
    """

    def __init__(self, run: Run, latents: Tensor | None) -> None:
        self.run = run
        self.latents = latents


class _Clocks:
    """Seconds per part, and what was seen in passing."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self.seconds: dict[str, float] = {}
        self.forwards: dict[tuple[str, int], list[float]] = {}
        self.latents: Tensor | None = None

    @contextlib.contextmanager
    def watching(self, spots: list[Spot]) -> Iterator[None]:
        # halfframe calls what it finds, so it must find these: the clocks are put in first and are innermost.
        with contextlib.ExitStack() as stack:
            for spot in spots:
                function = getattr(spot.owner, spot.attribute)
                stack.enter_context(mock.patch.object(spot.owner, spot.attribute, self._around(spot, function)))
            yield

    def _around(self, spot: Spot, function: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(function)
        def timed(*args: Any, **kwargs: Any) -> Any:
            subject = spot.subject(*args, **kwargs) if spot.subject else None
            start = clock(self._device, True)
            result = function(*args, **kwargs)
            self._note(spot.part, clock(self._device, True) - start, subject)
            return result

        return timed

    def _note(self, part: str, seconds: float, subject: Tensor | None) -> None:
        if part in EXPERTS and subject is not None:
            self.forwards.setdefault((part, subject.shape[frames.TIME_DIM]), []).append(seconds)
            return
        self.seconds[part] = self.seconds.get(part, 0.0) + seconds
        if part == "vae":
            self.latents = subject


def measured(
    host: Host, group: Group, clip: Clip, steps: int, options: dict[str, Any] | None, *, offload: bool
) -> Timed:
    """Time a run, in a block of `halfframe.enabled` with `options` if they are given.

    Args:
        host: the pipeline.
        group: the processes; all of them must call this.
        clip: what is made.
        steps: solver steps.
        options: of ``halfframe.enabled``; None for a plain run.
        offload: whether upstream moves its experts.

    Raises:
        HalfframeError: the processes did not do the same.
    """
    device = group.device
    clocks = _Clocks(device)
    with contextlib.ExitStack() as stack:
        stack.enter_context(clocks.watching(host.spots()))
        start = time.perf_counter()
        enabled = None if options is None else stack.enter_context(halfframe.enabled(host.pipe, **options))
        enabling = time.perf_counter() - start
        if device.type == "cuda":
            torch.cuda.reset_peak_memory_stats()
        start = clock(device, True)
        host.generate(clip, steps, offload)
        seconds = clock(device, True) - start
        start = time.perf_counter()
    leaving = time.perf_counter() - start  # putting the clocks away too, which is next to nothing
    kinds = tuple(
        Forwards(expert, count, len(times), sum(times)) for (expert, count), times in sorted(clocks.forwards.items())
    )
    report = None if enabled is None or enabled.report is None else enabled.report.to_dict()
    group.require_same("what their experts computed", [(k.expert, k.latent_frames, k.count) for k in kinds])
    group.require_same("the schedule that they report", None if report is None else _schedule(report))
    latents = None if clocks.latents is None else clocks.latents.detach().float().cpu()
    run = Run(
        steps=steps,
        seconds=seconds,
        forwards=kinds,
        solver=clocks.seconds.get("solver", 0.0),
        vae=clocks.seconds.get("vae", 0.0),
        text=clocks.seconds.get("text", 0.0),
        enabling=0.0 if options is None else enabling + leaving,
        finite=latents is None or bool(latents.isfinite().all()),
        peak_gpu_gib=_peak_gpu(group),
        peak_host_gib=_peak_host(),
        report=report,
    )
    return Timed(run, latents)


def alone(function: Callable[[], None], group: Group, *, timed: bool) -> float | None:
    """Median seconds of `function`, after a call that warms up; only that call if not `timed`.

    At least one call is timed, and at most five, for about ten seconds.
    """
    start = clock(group.device, True)
    function()
    first = clock(group.device, True) - start
    seconds = []
    for _ in range(group.agree(min(5, max(1, round(10 / max(first, 0.001))))) if timed else 0):
        start = clock(group.device, True)
        function()
        seconds.append(clock(group.device, True) - start)
    return statistics.median(seconds) if seconds else None


def _schedule(report: dict[str, Any]) -> list[Any]:
    """What every process must report alike: times differ."""
    names = ("steps", "passes", "latent_frames", "sequence_lengths", "frame_steps")
    phases = [[report[expert][name] for name in names] for expert in EXPERTS]
    return [*phases, report["switch_step"], report["switch_sigma"], report["saved"], report["note"]]


def _peak_gpu(group: Group) -> float | None:
    if group.device.type != "cuda":
        return None
    return max(group.gather(torch.cuda.max_memory_allocated() / 2**30))


def _peak_host() -> float:
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return float(peak) / (2**30 if sys.platform == "darwin" else 2**20)  # macOS counts bytes, Linux kibibytes
