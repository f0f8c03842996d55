"""The loop that makes the clips to compare, run by run; it records failures as well as results."""

from __future__ import annotations

import contextlib
import logging
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from torch import Tensor

from halfframe.compare import equal_cost, metrics
from halfframe.compare.budget import Ahead, Budget, NoTimeError, shortened
from halfframe.compare.cases import Case
from halfframe.compare.facts import machine_facts
from halfframe.compare.generators import Generate
from halfframe.compare.metrics import Video
from halfframe.compare.output import Writer
from halfframe.compare.progress import Progress
from halfframe.compare.quality import quality
from halfframe.compare.results import Comparison, ComparisonError, Results, Trial, Variant, describe
from halfframe.compare.timing import Called, call
from halfframe.compare.unfinished import earlier, restore
from halfframe.compare.videos import as_video
from halfframe.errors import HalfframeError, HalfframeWarning, OptionError

__all__ = ["Session"]

_logger = logging.getLogger(__name__)


class Session:
    """Runs every case with every variant, and measures the cost of each and its distance from the baseline.

    Args:
        host: makes the clips; the same arguments must give the same clip.
        variants: the baseline first.
        cases: prompts and seeds.
        steps: number of steps for variants without their own.
        quality: whether clips are kept, shown, and compared with those of the baseline.
        spots: whether to time the parts of a run, and each kind of forward pass by itself before the first run.
        budget: time budget for the whole session; if it runs fewer steps than `steps`, results are extrapolated. It
            needs `spots`.
        equal_cost: as for `compare`.
        warm_up_steps: as for `compare`; if parts are timed, a warm-up has all steps.
        repeat: as for `compare`.
        temporal_stride: as for `compare`.
        output: as for `compare`.
        resume: as for `compare`.
        progress: as for `compare`.
        facts: more facts for the heading of the tables, besides those of the machine and the host.
        check: ``(name, latents)`` returns the distance of the latents from a reference, for the tables.

    Raises:
        OptionError: an earlier session has other settings, or the host has no parts that can be timed.

    Attributes:
        comparison: filled as results arrive.
    """

    def __init__(
        self,
        host: Generate,
        variants: Sequence[Variant],
        cases: Sequence[tuple[str, int]],
        *,
        steps: int,
        quality: bool = True,
        spots: bool = False,
        budget: Budget | None = None,
        equal_cost: bool = True,
        warm_up_steps: int = 2,
        repeat: int = 1,
        temporal_stride: int = 4,
        output: str | Path | None = None,
        resume: bool = False,
        progress: Callable[[str], None] = _logger.info,
        facts: Mapping[str, Any] | None = None,
        check: Callable[[str, Tensor], float | None] | None = None,
    ) -> None:
        if (budget or spots) and (host.plan is None or not spots):
            raise OptionError("a budget needs spots=True, which needs a host that plans and names its spots.")
        rows = [Results(variant, variant.steps or steps) for variant in variants]
        self.comparison = Comparison(rows[0], rows[1:], {**machine_facts(host.device), **host.facts, **(facts or {})})
        self._host = host
        self._cases = [
            Case(prompt, seed, f"case {number} of {len(cases)}", f"case-{number}-seed-{seed}")
            for number, (prompt, seed) in enumerate(cases, 1)
        ]
        self._steps = steps
        self._quality = quality
        self._spots = spots
        self._ahead = Ahead(host, self.comparison, budget or Budget(), steps, repeat * len(cases), equal_cost)
        self._equal_cost = equal_cost
        self._warm_up_steps = warm_up_steps
        self._repeat = repeat
        self._temporal_stride = temporal_stride
        self._tell = progress
        self._check = check
        self._progress = Progress(progress, 0)
        left = host.gather(earlier(Path(output)) if resume and output is not None else None)[0]
        if left is not None:
            restore(self.comparison, left, more=not quality)
        for results in self.comparison.rows:
            self._plan(results)
        self._writer = Writer(output, earlier=left)
        self._writer.keep_clips(left)

    def run(self) -> Comparison:
        """Make all missing runs; finished results are written even if this is interrupted.

        Raises:
            ComparisonError: the baseline failed; ``error.comparison`` has the finished results.
        """
        try:
            if self._left():
                self._warm_up()
                if self._spots:
                    self._ahead.decide(self._tell)
                    self._compose()
                self._all_cases()
        except NoTimeError:
            names = ", ".join(results.variant.name for results in self._left())
            self.comparison.notes.append(f"no time was left for {names}; go on with resume.")
            self._tell(self.comparison.notes[-1])
        finally:
            self._writer.finish(self.comparison)
        return self.comparison

    def _left(self) -> list[Results]:
        """The variants that have runs to make."""
        return [row for row in self.comparison.rows if not row.error and any(self._due(row, c) for c in self._cases)]

    def _due(self, results: Results, case: Case) -> int:
        """How many runs of a case are still to be made."""
        trial = results.trial(case.prompt, case.seed)
        return self._repeat - min(self._repeat, len(trial.runs)) if trial else self._repeat

    def _work(self, results: Results) -> int:
        """Steps of a run."""
        return results.variant.steps or self.comparison.run_steps or self._steps

    def _plan(self, results: Results) -> None:
        """Say what a variant is going to compute; one whose runs are the baseline's goes on sharing them."""
        if self._spots and self._host.plan is not None and results.steps is not None:
            results.plan = self._host.plan(results.variant.options, results.steps).to_dict()
            if results.variant.options is None and results.variant.steps and results.extrapolated:
                results.trials = self.comparison.baseline.trials

    def _compose(self) -> None:
        """Variants that cannot be run in fewer steps: single passes and the baseline's runs say what they take."""
        for results in self.comparison.variants:
            if not self._ahead.can_shorten(results) and self.comparison.run_steps != self._steps:
                note = "not run: composed of single forward passes and what is none in the baseline's runs"
                results.trials, results.variant = self.comparison.baseline.trials, replace(results.variant, note=note)

    def _warm_up(self) -> None:
        """An untimed clip per way of computing; what fails here fails again, and is reported, in the timed run."""
        comparison, steps = self.comparison, self._steps if self._spots else self._warm_up_steps
        alone = comparison.alone if self._spots else None
        for results in comparison.rows if steps else ():
            name = results.variant.name
            if results is not comparison.baseline and results.variant.options is None:
                continue  # of the same shapes as the baseline
            self._tell(f"warm-up: {name}, {steps} steps")
            self._progress = Progress(self._tell, 0)
            with contextlib.suppress(Exception), warnings.catch_warnings():
                warnings.simplefilter("ignore", HalfframeWarning)  # so few steps may all be low-noise ones
                case, options = self._cases[0], results.variant.options
                made = call(self._host, (case.prompt, case.seed), steps, options, spots=self._spots, alone=alone)
                if results is comparison.baseline and self._spots:
                    comparison.rest = comparison.rest or self._host.gather(made.run.rest)[0]
                self._progress.done(steps, f"warm-up: {name} done")

    def _all_cases(self) -> None:
        """All variants of one case, in turns, then the next case: what is finished is comparable at any time."""
        due = [(row, self._due(row, case)) for case in self._cases for row in self.comparison.rows]
        self._progress = Progress(self._tell, sum(self._work(row) * n for row, n in due), self._progress.each)
        self._progress.say(f"{sum(n for _, n in due)} runs to make")
        for case in self._cases:
            if any(self._due(row, case) for row in self.comparison.rows):
                self._one_case(case)

    def _one_case(self, case: Case) -> None:
        comparison, baseline, writer = self.comparison, self.comparison.baseline, self._writer
        made = case.take_up(comparison, writer) if self._quality else 0
        self._progress.add(self._work(baseline) * min(self._repeat, made))
        for turn in range(self._repeat):
            self._attempt(baseline, case, turn)
            if baseline.error:
                raise ComparisonError(
                    f"the baseline, {baseline.variant.name!r}, failed at {case.label}: {baseline.error} Nothing can be "
                    f"compared without it; the {len(baseline.trials)} cases before it are kept.",
                    comparison,
                )
            for results in list(comparison.variants):
                self._attempt(results, case, turn)
            if turn == 0 and self._equal_cost and case is self._cases[0]:
                for results in equal_cost.rivals(comparison):
                    if comparison.run_steps in (None, self._steps):
                        self._progress.add(self._work(results) * self._repeat * len(self._cases))
                    else:  # a run of it would be the baseline's over again
                        results.trials = baseline.trials
                    self._plan(results)
                    self._attempt(results, case, turn)
        names = [row.variant.name for row in comparison.rows if row.trial(case.prompt, case.seed)]
        videos = {name: case.videos[name] for name in names if name in case.videos}
        if len(videos) == len(names) or not writer.shows(case.slug):  # else those that were made show more
            writer.pictures(comparison, videos, case.slug, f"{case.prompt!r}, seed {case.seed}")
        if writer.unfinished is not None:
            writer.unfinished.forget(case.slug)

    def _attempt(self, results: Results, case: Case, turn: int) -> None:
        """One run, timed and measured; what goes wrong ends this variant only, and is written down."""
        known = results.trial(case.prompt, case.seed)
        if results.error or (known is not None and len(known.runs) > turn):
            return
        name, steps = results.variant.name, self._work(results)
        label = case.label + (f", turn {turn + 1} of {self._repeat}" if self._repeat > 1 else "")
        self._ahead.require_time(results, steps)
        self._tell(f"{label}: {name}, {steps} steps")
        try:
            options = shortened(results.variant.options, results.steps or steps, steps)
            made = call(self._host, (case.prompt, case.seed), steps, options, spots=self._spots)
            trial, video = self._trial(results, case, known, made)
        except Exception as error:
            if len(self._host.gather(None)) > 1:
                raise  # the other processes would wait for this one
            _logger.debug("variant %r failed", name, exc_info=True)
            results.error = describe(error)
            self._progress.done(steps, f"{label}: {name} FAILED: {results.error}")
            self._writer.tables(self.comparison)
            return
        if known is not None:
            results.trials[results.trials.index(known)] = trial
        else:
            results.trials.append(trial)
        if video is not None:
            case.keep(self.comparison, results, video, self._writer)
        self._writer.tables(self.comparison)
        if video is not None and known is None:
            self._writer.clip(self.comparison, case.videos[name], case.slug, name)
        self._progress.done(steps, f"{label}: {name} took {made.run.seconds:.2f} s")

    def _trial(self, results: Results, case: Case, known: Trial | None, made: Called) -> tuple[Trial, Video | None]:
        counted = {passes.kind: passes.count for passes in made.run.passes}
        if self._spots and counted != (planned := self._ahead.kinds(results, made.run.steps or self._steps)):
            raise HalfframeError(
                f"the forward passes made were {counted}, those planned {planned}; what is extrapolated or estimated "
                "from that plan would be wrong."
            )
        run = made.run
        if self._check is not None and made.latents is not None:
            run = replace(run, off_by=self._check(f"{results.variant.name} {run.steps} steps", made.latents))
        run = self._host.gather(run)[0]
        video = as_video(made.output) if self._quality else None
        if known is not None:
            return replace(known, runs=(*known.runs, run)), video
        trial = Trial(case.prompt, case.seed, (run,), report=made.report)
        if video is not None:
            ratio = metrics.video_duplication_ratio(video, self._temporal_stride)
            measured = None if case.reference is None else quality(video, case.reference)
            trial = replace(trial, shape=video.shape, duplication_ratio=ratio, quality=measured)
        return trial, video
