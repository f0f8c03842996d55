"""The work of one call of `compare`: run by run, with what went wrong kept beside what went well."""

from __future__ import annotations

import contextlib
import logging
import time
import warnings
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

import halfframe
from halfframe.compare import metrics
from halfframe.compare.equal_cost import EqualCost, rivals
from halfframe.compare.metrics import Video
from halfframe.compare.output import Writer
from halfframe.compare.quality import quality
from halfframe.compare.results import Comparison, ComparisonError, Results, Trial, Variant, describe
from halfframe.compare.videos import as_video, to_bytes
from halfframe.errors import HalfframeError, HalfframeWarning
from halfframe.report.meter import clock

__all__ = ["Bench", "GenerateFunction"]

GenerateFunction = Callable[[str, int, int], Any]

_logger = logging.getLogger(__name__)


class Bench:
    """What one comparison works on.

    Args:
        generate: ``(prompt, seed, steps) -> video``.
        pipe: what `halfframe.enabled` is given; may be None if no variant has options.
        comparison: is filled as results come.
        writer: writes them down.
        progress: is told, a line at a time, what goes on.
        temporal_stride: video frames per latent frame.
    """

    def __init__(
        self,
        generate: GenerateFunction,
        pipe: Any,
        comparison: Comparison,
        writer: Writer,
        progress: Callable[[str], None],
        temporal_stride: int,
    ) -> None:
        self._generate = generate
        self._pipe = pipe
        self._comparison = comparison
        self._writer = writer
        self._progress = progress
        self._temporal_stride = temporal_stride
        self._cpu_seconds: float | None = None
        self._device = torch.device(
            getattr(generate, "device", None) or ("cuda" if torch.cuda.is_available() else "cpu")
        )

    def warm_up(self, prompt: str, seed: int, steps: int) -> None:
        """An untimed clip per way of computing; what fails here fails again, and is reported, in the timed run."""
        for results in self._comparison.rows:
            if results is not self._comparison.baseline and results.variant.options is None:
                continue  # the same shapes as the baseline
            self._progress(f"warm-up: {results.variant.name}, {steps} steps")
            with contextlib.suppress(Exception), warnings.catch_warnings():
                warnings.simplefilter("ignore", HalfframeWarning)  # so few steps may all be low-noise ones
                self._clip(results.variant, prompt, seed, steps)

    def run(self, cases: Sequence[tuple[str, int]], equal_cost: EqualCost | None) -> None:
        """All variants of one case, then the next case: what is finished is comparable at any time.

        Raises:
            ComparisonError: the baseline failed.
        """
        for number, (prompt, seed) in enumerate(cases, 1):
            case = _Case(prompt, seed, f"case {number} of {len(cases)}", f"case-{number}-seed-{seed}")
            self._attempt(self._comparison.baseline, case)
            if case.reference is None:
                failed = self._comparison.baseline
                raise ComparisonError(
                    f"the baseline, {failed.variant.name!r}, failed at {case.label}: {failed.error} Nothing can be "
                    f"compared without it; the {len(failed.trials)} cases before it are kept.",
                    self._comparison,
                )
            for results in list(self._comparison.variants):
                self._attempt(results, case)
            if number == 1 and equal_cost is not None:
                for results in rivals(self._comparison, equal_cost):
                    self._attempt(results, case)
            self._writer.pictures(self._comparison, case.videos, case.slug, f"{prompt!r}, seed {seed}")

    def _attempt(self, results: Results, case: _Case) -> None:
        """One clip, timed and measured; what goes wrong ends this variant only, and is written down."""
        if results.error:
            return
        name = results.variant.name
        self._progress(f"{case.label}: {name}, {results.steps} steps")
        try:
            trial, video = self._trial(results, case)
        except Exception as error:
            _logger.debug("variant %r failed", name, exc_info=True)
            results.error = describe(error)
            self._progress(f"{case.label}: {name} FAILED: {results.error}")
            self._writer.tables(self._comparison)
            return
        results.trials.append(trial)
        if case.reference is None:
            case.reference = video
        case.videos[name] = to_bytes(video)
        self._progress(f"{case.label}: {name} took {trial.seconds:.2f} s")
        self._writer.tables(self._comparison)
        self._writer.clip(self._comparison, case.videos[name], case.slug, name)

    def _trial(self, results: Results, case: _Case) -> tuple[Trial, Video]:
        video, seconds, report = self._clip(results.variant, case.prompt, case.seed, results.steps or 1)
        trial = Trial(
            prompt=case.prompt,
            seed=case.seed,
            seconds=seconds,
            shape=video.shape,
            duplication_ratio=metrics.video_duplication_ratio(video, self._temporal_stride),
            quality=None if case.reference is None else quality(video, case.reference),
            report=report,
            cpu_seconds=self._cpu_seconds,
        )
        return trial, video

    def _clip(self, variant: Variant, prompt: str, seed: int, steps: int) -> tuple[Video, float, dict[str, Any] | None]:
        """The clip, the seconds of the call alone, and halfframe's report of it."""
        if variant.options is None:
            output, seconds = self._timed(prompt, seed, steps)
            return as_video(output), seconds, None
        with halfframe.enabled(self._pipe, **variant.options) as run:
            output, seconds = self._timed(prompt, seed, steps)
        if run.report is None:
            raise HalfframeError(
                "the pipeline that was enabled did not run; pass as `pipe` the very object that `generate` calls."
            )
        return as_video(output), seconds, run.report.to_dict()

    def _timed(self, prompt: str, seed: int, steps: int) -> tuple[Any, float]:
        start, processor = clock(self._device, synchronize=True), time.process_time()
        output = self._generate(prompt, seed, steps)
        seconds = clock(self._device, synchronize=True) - start
        self._cpu_seconds = time.process_time() - processor if self._device.type == "cpu" else None
        return output, seconds


class _Case:
    """One prompt with one seed: the baseline's clip, and everyone's as bytes for the pictures."""

    def __init__(self, prompt: str, seed: int, label: str, slug: str) -> None:
        self.prompt = prompt
        self.seed = seed
        self.label = label
        self.slug = slug
        self.reference: Video | None = None
        self.videos: dict[str, npt.NDArray[np.uint8]] = {}
