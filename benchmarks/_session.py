"""The work on one host and clip: what is still to be run, whether there is time for it, and running it."""

from __future__ import annotations

import dataclasses
import functools
import time
from collections.abc import Callable
from pathlib import Path

import torch

from _output import comparison, rivals
from _parallel import Group
from _pipelines import Host
from _results import Section, Trials
from _steps import Run, choose_steps
from _timing import Timed, alone, measured
from _variants import BASELINE, Clip, shortened
from halfframe.compare import Variant, fewer_steps
from halfframe.errors import HalfframeError

__all__ = ["Latents", "Session"]

_WARM_UP = Clip(5, 64, 64)  # two latent frames: enough to halve, and no work to speak of


class Latents:
    """Latents that are kept for another benchmark to check against, and those of another that these are checked with.

    Args:
        save: file to write; None for none.
        against: file to check against; None for none.
        tolerance: largest relative distance that passes.
        resume: whether what is in `save` already stays there.
    """

    def __init__(self, save: Path | None, against: Path | None, tolerance: float, resume: bool = False) -> None:
        self._save = save
        self._mine: dict[str, torch.Tensor] = {}
        if resume and save is not None and save.exists():
            self._mine = torch.load(save, weights_only=True)
        self._others = None if against is None else torch.load(against, weights_only=True)
        self._tolerance = tolerance
        self.checked = 0
        self.failures: list[str] = []

    @property
    def missed(self) -> bool:
        """Whether there was something to check against, and it had nothing of what was run."""
        return self._others is not None and not self.checked

    def take(self, key: str, latents: torch.Tensor | None) -> float | None:
        """File `latents` under `key`; their relative distance from the other benchmark's, if it has any."""
        if latents is None:
            return None
        if self._save is not None:
            self._mine[key] = latents
            self._save.parent.mkdir(parents=True, exist_ok=True)
            torch.save(self._mine, self._save)
        if self._others is None or key not in self._others:
            return None
        self.checked += 1
        other = self._others[key]
        off_by = float((latents.double() - other.double()).norm() / other.double().norm())
        if not off_by <= self._tolerance:  # a NaN does not pass
            self.failures.append(f"{key}: latents are off by {off_by:.2e}, more than {self._tolerance:g}")
        return off_by


class Session:
    """One section of the results, and what fills it.

    Args:
        host: the pipeline.
        group: the processes.
        section: what is filled; it may have something already.
        variants: what is compared with the baseline.
        repeats: runs of each, taken in turns.
        latents: what to do with latents.
        write: writes the results down.
    """

    def __init__(
        self,
        host: Host,
        group: Group,
        section: Section,
        variants: list[Variant],
        repeats: int,
        latents: Latents,
        write: Callable[[], None],
    ) -> None:
        self._host = host
        self._group = group
        self.section = section
        self._clip = Clip.parse(section.clip)
        self._variants = [BASELINE, *variants]
        self._repeats = repeats
        self._latents = latents
        self._write = write
        self._failed: set[str] = set()
        for variant in self._variants:
            section.trials.setdefault(variant.name, Trials(steps=section.steps)).error = ""

    def pending(self) -> Variant | None:
        """The next variant to run; None if all have as many runs as were asked for."""
        for done in range(self._repeats):
            due = list(self._variants)
            if not self.section.extrapolated and self.section.run_steps:
                due += [fewer_steps(steps) for steps in rivals(self.section)]
            for variant in due:
                trials = self.section.trials.get(variant.name, Trials())
                if variant.name not in self._failed and len(trials.runs) <= done:
                    return variant
        return None

    def prepare(self) -> None:
        """Warm up, and time single forwards and decoding, if that was not done yet."""
        section = self.section
        smallest = choose_steps(section.steps, 1, section.split)
        for variant in self._variants:  # Python, kernels and libraries, all but those for the clip's own shapes
            if "prefetch" not in (variant.options or {}):
                options = shortened(variant.options, section.steps, smallest)
                measured(self._host, self._group, _WARM_UP, smallest, options, offload=False)
        kinds = [kind for variant in self._variants for kind in section.kinds(variant.name, section.steps)]
        for count in sorted({count for _, count in kinds}, reverse=True):
            seconds = self._alone(functools.partial(self._host.forward, self._clip, count), section.alone.get(count))
            section.alone[count] = seconds
            self._group.say(f"  one forward on {count} of {self._clip.latent_frames} latent frames: {seconds:.4f} s")
        section.decode_alone = self._alone(lambda: self._host.decode(self._clip), section.decode_alone or None)
        self._group.say(f"  decoding: {section.decode_alone:.3f} s")
        section.rest_guess = section.rest_guess or section.decode_alone
        if section.offload:  # from here on the experts start on the host, as they do in every video but the first
            timed = measured(self._host, self._group, self._clip, smallest, None, offload=True)
            section.rest_guess = self._group.agree(timed.run.rest)
        self._write()

    def decide(self, run_steps: int | None, budget: float | None) -> None:
        """How many steps are run: as many as were asked for, as earlier, or as `budget` seconds have room for."""
        section = self.section
        if not section.run_steps:
            section.run_steps = run_steps or self._group.agree(self._affordable(budget))
        elif run_steps and run_steps != section.run_steps:
            raise ValueError(
                f"the results so far of {section.host} {section.clip} are of {section.run_steps} steps; "
                f"--run-steps {run_steps} does not go with them"
            )
        if section.extrapolated:
            high, low = section.split(section.run_steps)
            self._group.say(
                f"  {section.run_steps} steps are run ({high} + {low}), and extrapolated to {section.steps}"
            )

        minutes = self._cost(section.run_steps) / 60
        self._group.say(f"  about {minutes:.0f} min for all of it" if minutes >= 1 else "  less than a minute for all")

    def run(self, until: float | None) -> list[str]:
        """Run what is pending as long as it will be over by `until`; returns the names of what was left."""
        while (variant := self.pending()) is not None:
            estimate = self.estimate(variant, self._steps(variant))
            if self._group.agree(until is not None and time.monotonic() + 1.05 * estimate > until):
                break
            self._one(variant)
            self._write()
        left = []
        while (variant := self.pending()) is not None:
            left.append(variant.name)
            self._failed.add(variant.name)
        return left

    def estimate(self, variant: Variant, steps: int) -> float:
        """Seconds that a run of `variant` should take, from single forwards."""
        section = self.section
        baseline = section.trials[BASELINE.name].runs
        total = baseline[0].rest if baseline else section.rest_guess
        for (_, frames), count in section.kinds(variant.name, steps).items():
            total += count * section.alone[min(known for known in section.alone if known >= frames)]
        return total

    def _affordable(self, budget: float | None) -> int:
        section = self.section
        if budget is None:
            return section.steps
        fitting = [n for n in range(1, section.steps + 1) if self._cost(n) <= budget]
        return choose_steps(section.steps, max(fitting, default=1), section.split)

    def _cost(self, steps: int) -> float:
        section = self.section
        costs = [self.estimate(variant, steps) for variant in self._variants]
        if steps == section.steps:  # only then are fewer steps run, and not had from the baseline
            rest = section.rest_guess
            step = 2 * section.alone[self._clip.latent_frames]
            others = {round((cost - rest) / step) for cost in costs[1:]}
            costs += [rest + step * count for count in others]
        return 1.05 * self._repeats * sum(costs)

    def _steps(self, variant: Variant) -> int:
        return variant.steps or self.section.run_steps

    def _one(self, variant: Variant) -> None:
        section, steps = self.section, self._steps(variant)
        trials = section.trials.setdefault(variant.name, Trials(steps=variant.steps or section.steps))
        try:
            timed = measured(
                self._host,
                self._group,
                self._clip,
                steps,
                shortened(variant.options, variant.steps or section.steps, steps),
                offload=section.offload,
            )
            kinds = {(one.expert, one.latent_frames): one.count for one in timed.run.forwards}
            if kinds != section.kinds(variant.name, steps):
                raise HalfframeError(
                    f"the forwards made were {kinds}, those planned {section.kinds(variant.name, steps)}; what is "
                    "extrapolated or estimated from that plan would be wrong"
                )
        except Exception as error:
            if self._group.size > 1 or variant is BASELINE:
                raise  # the other processes would wait for this one; nothing can be compared without a baseline
            trials.error = f"FAILED: {type(error).__name__}: {' '.join(str(error).split())}"
            self._failed.add(variant.name)
            self._group.say(f"  {variant.name}: {trials.error}")
            return
        trials.runs.append(self._group.agree(self._filed(variant, timed)))
        self._tell(variant.name)

    def _filed(self, variant: Variant, timed: Timed) -> Run:
        section = self.section
        offload = " offload" if section.offload else ""
        key = f"{section.host} {section.clip}{offload} {variant.name} {timed.run.steps} steps"
        return dataclasses.replace(timed.run, off_by=self._latents.take(key, timed.latents))

    def _tell(self, name: str) -> None:
        line = next((figures for figures in comparison(self.section) if figures.name == name), None)
        if line is None or line.seconds is None or line.speedup is None:
            return
        ext = f" (extrapolated to {line.steps} steps)" if line.extrapolated else ""
        overhead = "" if line.overhead is None else f", overhead {line.overhead:+.2%}"
        self._group.say(
            f"  {name}: {line.seconds:.2f} s, {line.speedup:.2f}x, {line.share_of_ideal:.1%} of what the forwards "
            f"allow{ext}{overhead}{'; ' + line.note if line.note else ''}"
        )

    def _alone(self, function: Callable[[], None], known: float | None) -> float:
        """Seconds of `function` alone; it is called all the same if they are `known`, to warm up."""
        seconds = self._group.agree(alone(function, self._group, timed=known is None))
        return known if seconds is None and known is not None else float(seconds or 0.0)
