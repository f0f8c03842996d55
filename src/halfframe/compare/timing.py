"""Clocks around a call of a pipeline, and around the parts of it."""

from __future__ import annotations

import contextlib
import functools
import statistics
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any
from unittest import mock

import torch
from torch import Tensor

import halfframe
from halfframe.compare.generators import Generate, Spot
from halfframe.compare.runs import EXPERTS, Kind, Passes, Run
from halfframe.errors import HalfframeError
from halfframe.report.meter import clock
from halfframe.sampling.frames import TIME_DIM

__all__ = ["Called", "call"]


@dataclass(frozen=True, slots=True)
class Called:
    """What a call gave.

    Attributes:
        output: what `Generate` returned.
        run: its times.
        report: halfframe's, as plain data; None for a plain run.
        latents: what was decoded; None where that was not watched.
    """

    output: Any
    run: Run
    report: dict[str, Any] | None
    latents: Tensor | None


class _Clocks:
    """Seconds of each part, and the latents in passing.

    With `alone`, the first forward pass of each kind is made over and over and timed; later ones skip their blocks.
    """

    def __init__(self, host: Generate, alone: dict[Kind, float] | None) -> None:
        self._host = host
        self._alone = alone
        self.parts: dict[str, float] = {}
        self.passes: dict[Kind, list[float]] = {}
        self.latents: Tensor | None = None

    @contextlib.contextmanager
    def watching(self) -> Iterator[None]:
        # halfframe calls what it finds, so it must find these: the clocks are put in first and are innermost.
        with contextlib.ExitStack() as stack:
            for spot in self._host.spots():
                function = getattr(spot.owner, spot.attribute)
                stack.enter_context(mock.patch.object(spot.owner, spot.attribute, self._around(spot, function)))
            yield

    def _around(self, spot: Spot, function: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(function)
        def timed(*args: Any, **kwargs: Any) -> Any:
            subject = spot.subject(*args, **kwargs) if spot.subject else None
            again = functools.partial(function, *args, **kwargs)
            if spot.part in EXPERTS and subject is not None:
                return self._pass((spot.part, subject.shape[TIME_DIM]), spot.owner, again)
            result, seconds = self._timed(again)
            self.parts[spot.part] = self.parts.get(spot.part, 0.0) + seconds
            self.latents = subject if spot.part == "vae" else self.latents
            return result

        return timed

    def _pass(self, kind: Kind, owner: Any, again: Callable[[], Any]) -> Any:
        times = self.passes.setdefault(kind, [])
        blocks = getattr(owner, "blocks", ()) if self._alone is not None and times else ()
        with contextlib.ExitStack() as stack:
            for block in blocks:
                stack.enter_context(mock.patch.object(block, "forward", lambda x, *_, **__: x))
            result, seconds = self._timed(again)
        if self._alone is not None and kind not in self._alone:
            # One to five more of them, for about ten seconds; every process must make as many.
            count = self._host.gather(min(5, max(1, round(10 / max(seconds, 0.001)))))[0]
            more = [self._timed(again)[1] for _ in range(count)]
            self._alone[kind] = self._host.gather(statistics.median(more))[0]
            seconds += sum(more)
        times.append(seconds)
        return result

    def _timed(self, function: Callable[[], Any]) -> tuple[Any, float]:
        start = clock(self._host.device, synchronize=True)
        result = function()
        return result, clock(self._host.device, synchronize=True) - start


def call(
    host: Generate,
    case: tuple[str, int],
    steps: int | None,
    options: Mapping[str, Any] | None,
    *,
    spots: bool = False,
    alone: dict[Kind, float] | None = None,
) -> Called:
    """Call `host` for a clip, in a block of `halfframe.enabled` where `options` are given, and time it.

    Args:
        host: the pipeline.
        case: prompt and seed.
        steps: to run.
        options: of `halfframe.enabled`; None for a plain run.
        spots: whether the parts are timed.
        alone: seconds of one forward pass of each kind by itself. If given, the call is a rehearsal: what is missing
            here is measured, and passes after the first of their kind are made without their blocks.

    Raises:
        HalfframeError: the pipeline that was enabled did not run.
    """
    clocks, device = _Clocks(host, alone), host.device
    with contextlib.ExitStack() as stack:
        if spots:
            stack.enter_context(clocks.watching())
        begun = time.perf_counter()
        enabled = None if options is None else stack.enter_context(halfframe.enabled(host.pipe, **options))
        enabling = time.perf_counter() - begun
        if spots and device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(device)
        begun, processor = clock(device, synchronize=True), time.process_time()
        output = host(*case, steps or 1)
        seconds = clock(device, synchronize=True) - begun
        processor = time.process_time() - processor
        begun = time.perf_counter()
    enabling += time.perf_counter() - begun  # putting the clocks away too, which is next to nothing
    if enabled is not None and enabled.report is None:
        raise HalfframeError(
            "the pipeline that was enabled did not run; pass as `pipe` the very object that `generate` calls."
        )
    run = Run(seconds, steps, processor if device.type == "cpu" else None)
    latents = None if clocks.latents is None else clocks.latents.detach().float().cpu()
    if spots:
        passes = [Passes(*kind, len(times), sum(times)) for kind, times in sorted(clocks.passes.items())]
        run = replace(
            run,
            passes=tuple(passes),
            parts=clocks.parts,
            enabling=0.0 if enabled is None else enabling,
            finite=latents is None or bool(latents.isfinite().all()),
            peak_gpu_gib=_peak_gpu(host),
            peak_host_gib=_peak_host(),
        )
    report = None if enabled is None or enabled.report is None else enabled.report.to_dict()
    return Called(output, run, report, latents)


def _peak_gpu(host: Generate) -> float | None:
    if host.device.type != "cuda":
        return None
    return float(max(host.gather(torch.cuda.max_memory_allocated(host.device) / 2**30)))


def _peak_host() -> float | None:
    if sys.platform == "win32":
        return None
    import resource  # there is none on Windows

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return float(peak) / (2**30 if sys.platform == "darwin" else 2**20)  # macOS counts bytes, Linux kibibytes
