"""The work of one call of `compare`: run by run, with what went wrong kept beside what went well."""

from __future__ import annotations

import contextlib
import logging
import time
import warnings
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

import halfframe
from halfframe.compare import metrics
from halfframe.compare.equal_cost import rivals
from halfframe.compare.metrics import Video
from halfframe.compare.output import Writer
from halfframe.compare.progress import Progress
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
        repeat: timed runs of each clip, all variants in turns.
    """

    def __init__(
        self,
        generate: GenerateFunction,
        pipe: Any,
        comparison: Comparison,
        writer: Writer,
        progress: Callable[[str], None],
        temporal_stride: int,
        repeat: int = 1,
    ) -> None:
        self._generate = generate
        self._pipe = pipe
        self._comparison = comparison
        self._writer = writer
        self._tell = progress
        self._temporal_stride = temporal_stride
        self._repeat = repeat
        self._progress = Progress(progress, 0)
        self._cpu_seconds: tuple[float, ...] = ()
        self._device = torch.device(
            getattr(generate, "device", None) or ("cuda" if torch.cuda.is_available() else "cpu")
        )

    def warm_up(self, cases: Sequence[tuple[str, int]], steps: int) -> None:
        """An untimed clip per way of computing; what fails here fails again, and is reported, in the timed run."""
        if not any(self._due(row, *case) for row in self._comparison.rows for case in cases):
            return
        rows = [row for row in self._comparison.rows if row is self._comparison.baseline or row.variant.options]
        for results in rows:  # the others have the same shapes as the baseline
            self._tell(f"warm-up: {results.variant.name}, {steps} steps")
            self._progress = Progress(self._tell, 0)
            with contextlib.suppress(Exception), warnings.catch_warnings():
                warnings.simplefilter("ignore", HalfframeWarning)  # so few steps may all be low-noise ones
                self._clip(results.variant, *cases[0], steps)
                self._progress.done(steps, f"warm-up: {results.variant.name} done")

    def run(self, cases: Sequence[tuple[str, int]], equal_cost: bool) -> None:
        """All variants of one case, in turns, then the next case: what is finished is comparable at any time.

        Raises:
            ComparisonError: the baseline failed.
        """
        rows = self._comparison.rows
        due = [(row, self._due(row, *case)) for case in cases for row in rows]
        self._progress = Progress(self._tell, sum((row.steps or 1) * n for row, n in due), self._progress.each)
        self._progress.say(f"{sum(n for _, n in due)} runs to make")
        for number, (prompt, seed) in enumerate(cases, 1):
            case = _Case(prompt, seed, f"case {number} of {len(cases)}", f"case-{number}-seed-{seed}")
            if any(self._due(row, prompt, seed) for row in self._comparison.rows):
                self._case(case, equal_cost and number == 1, len(cases))

    def _case(self, case: _Case, equal_cost: bool, cases: int) -> None:
        self._take_up(case)
        for turn in range(self._repeat):
            self._attempt(self._comparison.baseline, case, turn)
            failed = self._comparison.baseline
            if failed.error:
                raise ComparisonError(
                    f"the baseline, {failed.variant.name!r}, failed at {case.label}: {failed.error} Nothing can be "
                    f"compared without it; the {len(failed.trials)} cases before it are kept.",
                    self._comparison,
                )
            for results in list(self._comparison.variants):
                self._attempt(results, case, turn)
            if turn == 0 and equal_cost:
                for results in rivals(self._comparison):
                    self._progress.add((results.steps or 1) * self._repeat * cases)
                    self._attempt(results, case, turn)
        rows = [row for row in self._comparison.rows if row.trial(case.prompt, case.seed)]
        videos = {row.variant.name: case.videos[row.variant.name] for row in rows if row.variant.name in case.videos}
        if len(videos) == len(rows) or not self._writer.shows(case.slug):  # else those that were made show more
            self._writer.pictures(self._comparison, videos, case.slug, f"{case.prompt!r}, seed {case.seed}")
        if self._writer.unfinished is not None:
            self._writer.unfinished.forget(case.slug)

    def _due(self, results: Results, prompt: str, seed: int) -> int:
        """How many runs of a case are still to be made."""
        trial = results.trial(prompt, seed)
        return self._repeat - min(self._repeat, len(trial.seconds)) if trial else self._repeat

    def _take_up(self, case: _Case) -> None:
        """The clips that an earlier call left of a case; without the baseline's, that one is made again."""
        for results in self._comparison.rows:
            trial = results.trial(case.prompt, case.seed)
            name, unfinished = results.variant.name, self._writer.unfinished
            clip = unfinished.kept(case.slug, name) if trial and unfinished else None
            if clip is not None:
                case.videos[name] = to_bytes(clip)
                self._writer.clip(self._comparison, case.videos[name], case.slug, name)
            if results is self._comparison.baseline:
                case.reference = clip
                if trial is not None and clip is None:
                    results.trials.remove(trial)
                    self._progress.add((results.steps or 1) * min(self._repeat, len(trial.seconds)))

    def _attempt(self, results: Results, case: _Case, turn: int) -> None:
        """One run, timed and measured; what goes wrong ends this variant only, and is written down."""
        known = results.trial(case.prompt, case.seed)
        if results.error or (known is not None and len(known.seconds) > turn):
            return
        name, steps = results.variant.name, results.steps or 1
        label = case.label + (f", turn {turn + 1} of {self._repeat}" if self._repeat > 1 else "")
        self._tell(f"{label}: {name}, {steps} steps")
        try:
            trial, video = self._trial(results, case, known)
        except Exception as error:
            _logger.debug("variant %r failed", name, exc_info=True)
            results.error = describe(error)
            self._progress.done(steps, f"{label}: {name} FAILED: {results.error}")
            self._writer.tables(self._comparison)
            return
        if known is not None:
            results.trials[results.trials.index(known)] = trial
            if name in case.videos and not np.array_equal(to_bytes(video), case.videos[name]):
                note = f"{name}: another run of the same prompt and seed gave another clip; figures are of the first"
                self._comparison.notes += [note] if note not in self._comparison.notes else []
        else:
            results.trials.append(trial)
            case.reference = video if case.reference is None else case.reference
            case.videos[name] = to_bytes(video)
            if self._writer.unfinished is not None:
                is_baseline = results is self._comparison.baseline
                self._writer.unfinished.keep(case.slug, name, video if is_baseline else case.videos[name])
        self._writer.tables(self._comparison)
        if known is None:
            self._writer.clip(self._comparison, case.videos[name], case.slug, name)
        self._progress.done(steps, f"{label}: {name} took {trial.seconds[-1]:.2f} s")

    def _trial(self, results: Results, case: _Case, known: Trial | None) -> tuple[Trial, Video]:
        video, seconds, report = self._clip(results.variant, case.prompt, case.seed, results.steps or 1)
        if known is not None:
            cpu_seconds = known.cpu_seconds + self._cpu_seconds
            return replace(known, seconds=(*known.seconds, seconds), cpu_seconds=cpu_seconds), video
        trial = Trial(
            prompt=case.prompt,
            seed=case.seed,
            seconds=(seconds,),
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
        self._cpu_seconds = (time.process_time() - processor,) if self._device.type == "cpu" else ()
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
