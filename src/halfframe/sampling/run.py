"""One run of a host's sampling loop: latents, scheduler, history and the expert switch around the forward passes.

A host calls, in this order: `SamplingRun.allocate` where it draws its noise, `attach` where it builds its scheduler,
`forward` for each forward pass of an expert, `scheduler_step` in place of the scheduler's own. The latents that the
host carries keep full length throughout; expert calls are reduced in time and their predictions expanded again, and at
the switch the strategy turns the carried clip into the one that goes on.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any, TypeAlias, TypeVar

import pluggy
from torch import Tensor

from halfframe.errors import HalfframeError, StrategyError
from halfframe.report.meter import Meter
from halfframe.report.report import Report
from halfframe.sampling import frames
from halfframe.sampling.forward import Compute, ForwardPasses, checked, finite, only_looked_at
from halfframe.sampling.guidance import GuidancePlan, GuidanceState
from halfframe.sampling.host import HostFacts, NoiseSource
from halfframe.sampling.outcome import Wishes, announce, warn_of_shared_noise, why_nothing_saved
from halfframe.sampling.schedule import Schedule, scheduler_steps
from halfframe.sampling.scheduler import Scheduler, sample_of, with_sample
from halfframe.sampling.strategy import Allocation, Expert, Move, Reuse, Step, Strategy, frames_of, label_of
from halfframe.sampling.switch import ExpertSwitch

__all__ = ["Coming", "SamplingRun"]

_T = TypeVar("_T")
Coming: TypeAlias = tuple[Expert, Move] | None
"""An expert and the move at its coming step."""


class SamplingRun:
    """One run of a pipeline; see the module's text for the order of calls. Not for two runs at once.

    Args:
        facts: of the host.
        strategy: decides what is computed.
        guidance: decides which steps compute the unconditional pass.
        hooks: of the plugins.
        measure: whether forward passes are timed, synchronising the device.
    """

    def __init__(
        self,
        facts: HostFacts,
        strategy: Strategy,
        guidance: GuidancePlan,
        hooks: pluggy.HookRelay,
        measure: bool = False,
    ) -> None:
        self.facts = facts
        self.strategy = strategy
        self.meter = Meter(facts.expert_shape, facts.temporal_stride, measure)
        self.passes = ForwardPasses(facts, self._named, hooks, self.meter, measure)
        self._hooks = hooks
        self.guidance_plan = guidance
        self._guidance = GuidanceState(guidance)
        self._shape: tuple[int, ...] | None = None
        self._replay: Callable[[], Tensor] | None = None
        self.scheduler: Scheduler | None = None
        self._schedule: Schedule | None = None
        self._index = 0
        self._number = 0
        self._unserved = 0
        self._stood_in = ""
        self._replacement: Tensor | None = None
        at_switch = partial(self._ask, "at_switch", strategy.at_switch)
        self._switch = ExpertSwitch(at_switch, facts.conditioning, self._named, hooks)

    # The seams, in the order in which a host meets them.

    @property
    def allocated(self) -> bool:
        """Whether the run's noise was drawn."""
        return self._shape is not None

    @property
    def coming(self) -> Coming:
        """Which expert the coming step calls, and its move; None before the first expert call and after the last."""
        schedule = self._schedule
        if schedule is None or self._index >= len(schedule.steps):
            return None
        return schedule.steps[self._index].expert, schedule.moves[self._index]

    def allocate(self, shape: tuple[int, ...], source: NoiseSource) -> Tensor:
        """The latents to start from, of `shape` ``(..., F, H, W)``: a hook's, else the strategy's."""
        self._shape = shape
        like = source.like
        allocation = Allocation(
            shape, like.dtype, like.device, source.draw, self.facts.conditioning(shape[frames.TIME_DIM])
        )
        latents: Tensor | None = self._hooks.halfframe_allocate(allocation=allocation)
        if latents is not None:
            return checked(latents, shape, like, "what a halfframe_allocate hook returned")
        if self._schedule is not None and not self._schedule.maps:
            return source.draw(shape)  # as in `_carried_on`: nothing will be left out, and here that is known
        self._replay = lambda: source.replay(shape)
        latents = self._ask("allocate", self.strategy.allocate, allocation)
        what = f"allocation by {self._named}"
        return finite(checked(latents, shape, like, what), what)

    def attach(self, scheduler: Scheduler) -> None:
        """The host's scheduler; its timesteps may still be unset."""
        self.scheduler = scheduler

    def follow(self, steps: list[Step]) -> Schedule:
        """Lay out the run over `steps`; a host without a scheduler object says them, others need not."""
        self._schedule = Schedule.plan(steps, self.strategy)
        self.passes.remembers = self._schedule.reuses
        return self._schedule

    def forward(self, expert: Expert, latents: Tensor, compute: Compute) -> Tensor:
        """A forward pass of `expert` is due for `latents` ``(..., F, H, W)``: its velocity, of the same shape.

        Args:
            expert: which one.
            latents: what the host is about to call it with.
            compute: makes the pass, if one is made.

        Raises:
            HalfframeError: the host's loop is not the one that halfframe knows.
        """
        schedule = self._planned(latents)
        step = self._current_step(schedule, expert)
        latents = self._carried_on(schedule, step, latents)
        move = schedule.moves[self._index]
        reused = isinstance(move, Reuse)  # both passes are; guidance has nothing to skip there
        velocity = None if reused else self._guidance.stand_in(step, self._number)
        if velocity is not None:
            self._stood_in = self._guidance.label
            self.passes.skip(step, latents)
            self.passes.see(step, self._number, latents, velocity)
        else:
            velocity = self.passes.make(step, move, self._number, latents, compute)
            self._guidance.see(step, self._number, velocity, computed=not reused)
        self._number += 1
        return velocity

    def scheduler_step(
        self, original: Callable[..., Any], output: Tensor, timestep: Any, sample: Tensor, *args: Any, **kwargs: Any
    ) -> Any:
        """The scheduler's step, on the latents as the run has them; returns what `original` returns."""
        schedule = self._schedule
        if schedule is None:
            self._unserved += 1
        elif self._number == 0 and self._index < len(schedule.steps):
            raise self._unknown_loop(
                f"made scheduler step {self._index + 1} of {len(schedule.steps)} without an expert call that halfframe "
                "saw"
            )
        if self._replacement is not None:
            sample = self._switch.sample_for(self._replacement, sample)
        self._switch.settle_history(sample)
        self._replacement = None
        if schedule is None or self._number == 0:  # no expert was called through us yet, or the schedule has ended
            return original(output, timestep, sample, *args, **kwargs)
        step, move = schedule.steps[self._index], schedule.moves[self._index]
        self.show(step, sample, output)
        result = original(output, timestep, sample, *args, **kwargs)
        self.meter.step(step.expert, frames_of(move, step.num_frames), label_of(move) + self._stood_in)
        self._index += 1
        self._number, self._stood_in = 0, ""
        ended = self._index == len(schedule.steps)
        if ended:
            if schedule.maps and not self._switch.done:
                result = with_sample(result, lambda latents: self._switched(latents, None))
            self._hooks.halfframe_latents(latents=sample_of(result).detach())
        comes_next = not ended and schedule.steps[self._index].expert == "low" and not self._switch.done
        self._switch.watch(sample_of(result) if comes_next else None)
        return result

    def show(self, step: Step, latents: Tensor, velocity: Tensor) -> None:
        """Let hooks see the prediction of `step` after guidance, ``(..., F, H, W)`` as `latents`."""
        latents, velocity = latents.detach(), velocity.detach()
        only_looked_at(self._hooks.halfframe_step, (latents, velocity), step=step, latents=latents, velocity=velocity)

    @property
    def shows(self) -> bool:
        """Whether a hook wants to see the prediction of each step."""
        return bool(self._hooks.halfframe_step.get_hookimpls())

    def switch_now(self, latents: Tensor, sigma: float) -> Tensor:
        """The high-noise expert is done with the clip, in a host without a scheduler object: what goes on from it."""
        return self._switch.make(latents, None, sigma, self.passes.latest, self._tokens(latents))

    def report(self) -> Report:
        """What the run did, once it is over."""
        return self.meter.report(
            host=self.facts.name,
            strategy=str(self.strategy),
            latent_frames=self._latent_frames,
            switch=None if self._switch.step is None else (self._switch.step.index, self._switch.step.sigma),
            why_not=why_nothing_saved(self._schedule, self.scheduler, self.facts, self._named if self._asked else ""),
        )

    def announce(self, report: Report, expects_skips: bool = True, expects_truncation: bool = True) -> None:
        """Log one line, hand `report` to the hooks, and warn if something that was asked for did not happen.

        Args:
            report: of this run.
            expects_skips: whether frames or steps were to be skipped, if a strategy was asked for.
            expects_truncation: whether unconditional passes were, if guidance was to be skipped.
        """
        asked = self._asked or not self.guidance_plan
        wishes = Wishes(asked and expects_skips, bool(self.guidance_plan) and expects_truncation)
        announce(report, self._hooks, wishes)

    def close(self) -> None:
        """Let go of every tensor: hosts hold on to a run in ways that only the garbage collector undoes."""
        self._replay = self.scheduler = self._replacement = None
        self._switch.close()
        self._guidance.close()
        self.passes.close()

    # What happens between the seams.

    def _planned(self, latents: Tensor) -> Schedule:
        if self._schedule is not None:
            return self._schedule
        if self._unserved:
            raise self._unknown_loop(f"made {self._unserved} scheduler steps before its first expert call")
        if self._shape is None or self.scheduler is None:
            unseen = "draw its noise" if self._shape is None else "build its scheduler"
            raise self._unknown_loop(f"called an expert before halfframe saw it {unseen}")
        if latents.shape[frames.TIME_DIM :] != self._shape[frames.TIME_DIM :]:
            raise self._unknown_loop(
                f"drew noise of shape {self._shape} and calls its expert with latents of shape {tuple(latents.shape)}"
            )
        facts, num_frames, conditioning = self.facts, self._shape[frames.TIME_DIM], self.facts.conditioning_frames
        steps = scheduler_steps(self.scheduler, facts.boundary, num_frames, conditioning, facts.conditioned)
        schedule = self.follow(steps)
        warn_of_shared_noise(schedule, latents, self._named)
        return schedule

    def _current_step(self, schedule: Schedule, expert: Expert) -> Step:
        if self._index >= len(schedule.steps):
            raise self._unknown_loop(f"calls an expert after the last of its {len(schedule.steps)} steps")
        step = schedule.steps[self._index]
        if step.expert != expert:
            raise self._unknown_loop(
                f"runs its {expert}-noise expert at timestep {step.timestep:g}, where the boundary "
                f"{self.facts.boundary:g} calls for the {step.expert}-noise one"
            )
        return step

    def _carried_on(self, schedule: Schedule, step: Step, latents: Tensor) -> Tensor:
        """The latents as the run has them, where the host's own are not the ones to go on from."""
        if self._number == 0:
            if self._index == 0 and not schedule.maps and self._replay is not None:
                # Nothing will be left out, so the clip must be the one that a plain run gives.
                self._replacement = self._replay()
            elif step.expert == "low" and step.expert_index == 0 and self._index > 0:
                self._replacement = self._switched(latents, step)
        if self._replacement is None:
            return latents
        return self._replacement.to(latents.dtype).reshape(latents.shape)

    def _switched(self, latents: Tensor, step: Step | None) -> Tensor:
        assert self.scheduler is not None
        sigma = float(self.scheduler.sigmas[self._index])
        return self._switch.make(latents, step, sigma, self.passes.latest, self._tokens(latents), self.scheduler)

    @property
    def _latent_frames(self) -> int:
        """Of the clip; a run that goes on from another's latents has drawn no noise."""
        if self._shape is not None:
            return self._shape[frames.TIME_DIM]
        return self._schedule.steps[0].num_frames if self._schedule is not None and self._schedule.steps else 0

    def _tokens(self, latents: Tensor) -> int:
        return self.passes.sequence_length(latents, latents.shape[frames.TIME_DIM])

    def _ask(self, what: str, question: Callable[..., _T], *args: Any) -> _T:
        """Put a question to the strategy; whatever goes wrong in there is reported under its name."""
        try:
            return question(*args)
        except HalfframeError:
            raise
        except Exception as error:
            raise StrategyError(f"{self._named} failed in {what!r}: {type(error).__name__}: {error}") from error

    @property
    def _asked(self) -> bool:
        """Whether a strategy was asked for."""
        return type(self.strategy) is not Strategy

    @property
    def _named(self) -> str:
        return f"strategy {self.strategy.name!r}"

    def _unknown_loop(self, seen: str) -> HalfframeError:
        return HalfframeError(
            f"host {self.facts.name!r} {seen}; its sampling loop is not the one that halfframe knows. Use a supported "
            "version (see the README), or run without halfframe."
        )
