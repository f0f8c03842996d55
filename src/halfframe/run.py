"""One sampling run: between a host's seams on one side and the strategy and hooks on the other.

A host calls, in this order: `SamplingRun.allocate` where it draws its noise, `attach_solver` where it builds its
solver, `before_call` and `after_call` around each forward of an expert, `solver_step` in place of the solver's own.
The latents that the host carries keep full length throughout; expert calls are cut down to the kept frames and their
predictions filled up again, and at the switch the strategy turns the carried clip into the one that goes on.
"""

from __future__ import annotations

import contextlib
import logging
import math
import os
import sys
import warnings
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import pluggy
import torch
from torch import Tensor

from halfframe import frames, solvers
from halfframe.errors import HalfframeError, HalfframeWarning, StrategyError
from halfframe.events import ExpertCall
from halfframe.guidance import GuidanceState
from halfframe.meter import Meter, clock
from halfframe.preload import Outcome
from halfframe.report import Report
from halfframe.schedule import Schedule
from halfframe.seams import Call, HostFacts, NoiseSource, Settings
from halfframe.strategies.base import Allocation, Expert, Step, Strategy
from halfframe.strategies.mixture import Mixture
from halfframe.switch import ExpertSwitch

__all__ = ["SamplingRun"]

_logger = logging.getLogger(__name__)
_T = TypeVar("_T")


class SamplingRun:
    """One run of a pipeline; see the module's text for the order of calls. Not for two runs at once."""

    def __init__(self, facts: HostFacts, strategy: Strategy, hooks: pluggy.HookRelay, settings: Settings) -> None:
        self.facts = facts
        self.strategy = strategy
        self._hooks = hooks
        self._settings = settings
        self._meter = Meter(facts.expert_shape, facts.temporal_stride, settings.tflops, settings.measure)
        self.guidance = GuidanceState(settings.guidance)
        self._shape: tuple[int, ...] | None = None
        self._replay: Callable[[], Tensor] | None = None
        self._solver: solvers.Solver | None = None
        self._schedule: Schedule | None = None
        self._index = 0
        self._forward = 0
        self._leaves_out = False
        self._last_call: Call | None = None
        self._replacement: Tensor | None = None
        self._switch = ExpertSwitch(self._expand, self._named, hooks)
        self._preload: Outcome | None = None

    # The seams, in the order in which a host meets them.

    @property
    def allocated(self) -> bool:
        """Whether the run's noise was drawn."""
        return self._shape is not None

    @property
    def coming(self) -> tuple[Expert, tuple[int, ...] | None, Mixture | None] | None:
        """Which expert the coming step calls, and for what: the frames to compute, None for all, or their mixture.

        None before the first expert call, and after the last step.
        """
        if self._schedule is None or self._index >= len(self._schedule.kept):
            return None
        step, kept = self._schedule.steps[self._index], self._schedule.kept[self._index]
        return step.expert, kept, self._mixture(step, kept)

    def allocate(self, shape: tuple[int, ...], source: NoiseSource) -> Tensor:
        """The latents to start from, of `shape` ``(..., F, H, W)``: a hook's, else the strategy's."""
        self._shape = shape
        self._ask("begin", self.strategy.begin, shape[frames.TIME_DIM])
        like = source.like
        allocation = Allocation(
            shape, self._settings.noise, like.dtype, like.device, source.draw, self._pinned(shape[frames.TIME_DIM])
        )
        latents: Tensor | None = self._hooks.halfframe_allocate(allocation=allocation)
        if latents is not None:
            return _checked(latents, shape, like, "what a halfframe_allocate hook returned")
        self._replay = lambda: source.replay(shape)
        latents = self._ask("allocate", self.strategy.allocate, allocation)
        return _checked(latents, shape, like, f"allocation by {self._named}")

    def attach_solver(self, solver: solvers.Solver) -> None:
        """The host's solver; its timesteps may still be unset."""
        self._solver = solver

    def before_call(self, expert: Expert, latents: Tensor) -> Call:
        """`expert` is about to be called with `latents` ``(..., F, H, W)``."""
        schedule = self._planned(latents)
        step = self._current_step(schedule, expert)
        if self._forward == 0:
            if self._index == 0 and not schedule.halves and self._replay is not None:
                # Nothing will be left out, so the clip must be the one that a plain run gives.
                self._replacement = self._replay()
            elif expert == "low" and step.expert_index == 0 and self._index > 0:
                self._replacement = self._switched(latents, step)
        if self._replacement is not None:
            latents = self._replacement.to(latents.dtype).reshape(latents.shape)
        kept = schedule.kept[self._index]
        mixture = self._mixture(step, kept)
        if mixture is not None:
            inputs = mixture.of(latents, step.sigma)
        else:
            inputs = latents if kept is None else frames.take(latents, kept)
        length = self._sequence_length(inputs, inputs.shape[frames.TIME_DIM])
        positions = self._positions(step, kept) if mixture is None else mixture.positions
        call = Call(step, self._forward, latents, kept, inputs, length, positions, mixture)
        self._forward += 1
        call.started = clock(latents.device, self._settings.measure)
        return call

    def stand_in(self) -> Tensor | None:
        """What takes the place of the expert's coming forward, ``(..., F, H, W)``; None if it is to be made.

        That is so for the unconditional forward of a step that goes without it. Who asks and is given one must not
        make the forward: it counts as left out.
        """
        if self._schedule is None or self._index >= len(self._schedule.steps):
            return None
        prediction = self.guidance.stand_in(self._schedule.steps[self._index], self._forward)
        self._leaves_out = prediction is not None
        return prediction

    def after_call(self, call: Call, prediction: Tensor) -> Tensor:
        """The expert's `prediction` for the frames of `call`; returns it for all frames."""
        seconds = clock(prediction.device, self._settings.measure) - call.started
        shape = (*prediction.shape[: frames.TIME_DIM], *call.inputs.shape[frames.TIME_DIM :])
        _checked(prediction, shape, None, f"the prediction of the {call.step.expert}-noise expert")
        full = self._fill(call, prediction)
        count = shape[frames.TIME_DIM]
        full_length, clips = self._full_length(call), _clips(call)
        self._meter.forward(call.step.expert, count, call.sequence_length, full_length, clips, seconds)
        self._last_call = call
        self.guidance.see(call.step, call.forward, full)
        self._hooks.halfframe_expert_call(
            call=ExpertCall(
                step=call.step,
                forward=call.forward,
                kept=call.kept,
                latents=call.inputs,
                prediction=prediction,
                sequence_length=call.sequence_length,
                seconds=seconds if self._settings.measure else None,
            )
        )
        return full

    def solver_step(
        self, original: Callable[..., Any], output: Tensor, timestep: Any, sample: Tensor, *args: Any, **kwargs: Any
    ) -> Any:
        """The solver's step, on the latents as the run has them; returns what `original` returns."""
        if self._replacement is not None:
            sample = self._switch.sample_for(self._replacement, sample)
        self._switch.settle_history(sample)
        self._replacement = None
        result = original(output, timestep, sample, *args, **kwargs)
        call, schedule = self._last_call, self._schedule
        if call is None or schedule is None or self._forward == 0:
            return result  # a step without an expert call is none of ours
        if self._leaves_out:
            self._meter.skip(call.step.expert, self._full_length(call), _clips(call))
        self._leaves_out = False
        self._meter.step(call.step.expert, call.inputs.shape[frames.TIME_DIM])
        self._index += 1
        self._forward = 0
        ended = self._index == len(schedule.steps)
        if ended and schedule.halves and not self._switch.done:
            return _with_sample(result, lambda latents: self._switched(latents, None))
        comes_next = not ended and schedule.steps[self._index].expert == "low" and not self._switch.done
        self._switch.watch(_sample(result) if comes_next else None)
        return result

    @property
    def wants_preload(self) -> bool:
        """Whether the user asked for an expert switch without copying back."""
        return self._settings.preload

    def preloaded(self, outcome: Outcome) -> None:
        """The host says what became of that."""
        self._preload = outcome

    @property
    def at_its_largest(self) -> bool:
        """Whether no later step of the same expert computes more frames than those up to the present one."""
        schedule = self._schedule
        if schedule is None or self._index >= len(schedule.steps):
            return False
        expert = schedule.steps[self._index].expert
        counts = [
            (step.index, step.num_frames if kept is None else len(kept))
            for step, kept in zip(schedule.steps, schedule.kept, strict=True)
            if step.expert == expert
        ]
        so_far = max(count for index, count in counts if index <= self._index)
        return all(count <= so_far for _, count in counts)

    def report(self) -> Report:
        """What the run did, once it is over."""
        return self._meter.report(
            host=self.facts.name,
            strategy=self.strategy.name,
            options=self._settings.options,
            noise=self._settings.noise,
            latent_frames=self._shape[frames.TIME_DIM] if self._shape else 0,
            switch=self._switch.step,
            why_not=self._why_not_halved(),
            preload=self._preload.text if self._preload is not None else None,
        )

    def announce(self, report: Report) -> None:
        """Log one line, hand `report` to the hooks, and warn if something that was asked for did not happen."""
        _logger.info(report.summary())
        try:
            self._hooks.halfframe_report(report=report)
        except Exception as error:  # the video is made; a plugin's trouble with the report must not cost it
            _logger.exception("a halfframe_report hook failed")
            _warn(
                f"a halfframe_report hook failed: {type(error).__name__}: {error}; the video and the report are whole"
            )
        settings = self._settings
        if settings.guidance and not (report.guidance_truncated or settings.guidance_by_preset):
            _warn(f"no guidance was truncated: {self._why_not_truncated(report)}")
        if not report.halved and (self.strategy.halves or not (settings.guidance or self.wants_preload)):
            _warn(f"nothing was halved: {report.note}")
        if self._preload is not None and self._preload.warn:
            _warn(f"preload {self._preload.text}")

    def close(self) -> None:
        """Let go of every tensor: hosts hold on to a run in ways that only the garbage collector undoes."""
        self._replay = self._solver = self._last_call = self._replacement = None
        self._switch.close()
        self.guidance = GuidanceState(self._settings.guidance)

    # What happens between the seams.

    def _planned(self, latents: Tensor) -> Schedule:
        if self._schedule is not None:
            return self._schedule
        if self._shape is None or self._solver is None:
            unseen = "draw its noise" if self._shape is None else "build its solver"
            raise self._unknown_loop(f"called an expert before halfframe saw it {unseen}")
        num_frames = self._shape[frames.TIME_DIM]
        if latents.shape[frames.TIME_DIM :] != self._shape[frames.TIME_DIM :]:
            raise self._unknown_loop(
                f"drew noise of shape {self._shape} and calls its expert with latents of shape {tuple(latents.shape)}"
            )
        self._schedule = Schedule.plan(
            self._solver,
            self.facts.boundary,
            num_frames,
            self._selected,
            self._pinned(num_frames),
            self.strategy.name,
            self.facts.conditioned,
        )
        return self._schedule

    def _selected(self, step: Step) -> Sequence[int] | None:
        def select() -> Sequence[int] | None:
            selection = self.strategy.select(step)
            return None if selection is None else tuple(selection)  # a generator fails here and not later

        return self._ask("select", select)

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

    def _mixture(self, step: Step, kept: tuple[int, ...] | None) -> Mixture | None:
        if kept is None:
            return None
        mixture = self._ask("mixture", self.strategy.mixture, step)
        if mixture is None:
            return None
        if self._pinned(step.num_frames):
            raise StrategyError(
                f"{self._named} gives the expert means of frames, but frames {self._pinned(step.num_frames)} have a "
                "condition of their own here (`last_image`) and must be computed as they are; use 'interleave'."
            )
        rows, columns = len(mixture.weights), {len(row) for row in mixture.weights}
        if rows != len(kept) or columns != {step.num_frames}:
            raise StrategyError(
                f"the mixture of {self._named} has {rows} rows of {sorted(columns)} weights at step {step.index}; "
                f"needed: {len(kept)} rows, as many as it selects frames, of {step.num_frames} weights."
            )
        return mixture

    def _positions(self, step: Step, kept: tuple[int, ...] | None) -> tuple[int, ...] | None:
        if kept is None or not self._ask("true_positions", self.strategy.true_positions, step):
            return None
        return None if kept == tuple(range(len(kept))) else kept

    def _fill(self, call: Call, prediction: Tensor) -> Tensor:
        assert self._schedule is not None
        kept = call.kept or tuple(range(call.step.num_frames))
        chosen = None if call.kept is None or self.strategy.sees_pinned else self._schedule.chosen[call.step.index]
        chosen = chosen or kept
        base = prediction if chosen == kept else frames.take(prediction, [kept.index(p) for p in chosen])
        full = self._ask("fill", self.strategy.fill, base, chosen, call.step, call.forward, call.latents)
        shape = (*prediction.shape[: frames.TIME_DIM], *call.latents.shape[frames.TIME_DIM :])
        _checked(full, shape, prediction, f"what {self._named} filled in")
        pinned = self._pinned(call.step.num_frames)
        if chosen == kept or not pinned:
            return full
        return frames.put(full, pinned, frames.take(prediction, [kept.index(p) for p in pinned]))

    def _switched(self, latents: Tensor, step: Step | None) -> Tensor:
        assert self._solver is not None
        assert self._last_call is not None
        length = self._sequence_length(latents, latents.shape[frames.TIME_DIM])
        return self._switch.make(self._solver, latents, step, self._index, self._last_call, length)

    def _expand(self, latents: Tensor) -> Tensor:
        given = latents.clone()  # a strategy may work in place
        result = self._ask("switch", self.strategy.switch, given)
        _checked(result, tuple(latents.shape), latents, f"expansion by {self._named}")
        if result is given and torch.equal(given, latents):
            return latents
        pinned = self._pinned(latents.shape[frames.TIME_DIM])
        return frames.put(result, pinned, frames.take(latents, pinned)) if pinned else result

    def _pinned(self, num_frames: int) -> tuple[int, ...]:
        return tuple(sorted({position % num_frames for position in self.facts.pinned}))

    def _sequence_length(self, latents: Tensor, count: int) -> int:
        height, width = latents.shape[-2:]
        tokens = (height // self.facts.patch_size[1]) * (width // self.facts.patch_size[2])
        return frames.sequence_length(count, tokens, self.facts.group_size)

    def _full_length(self, call: Call) -> int:
        return self._sequence_length(call.latents, call.step.num_frames)

    def _ask(self, what: str, question: Callable[..., _T], *args: Any) -> _T:
        """Put a question to the strategy; whatever goes wrong in there is reported under its name."""
        try:
            return question(*args)
        except HalfframeError:
            raise
        except Exception as error:
            raise StrategyError(f"{self._named} failed in {what!r}: {type(error).__name__}: {error}") from error

    @property
    def _named(self) -> str:
        return f"strategy {self.strategy.name!r}"

    def _unknown_loop(self, seen: str) -> HalfframeError:
        return HalfframeError(
            f"host {self.facts.name!r} {seen}; its sampling loop is not the one that halfframe knows. Use a supported "
            "version (see the README), or run without halfframe."
        )

    def _why_not_truncated(self, report: Report) -> str:
        if self._settings.guidance.every > 1 and report.high.forwards + report.low.forwards > report.steps:
            return "an expert's first step keeps its unconditional forward, and no expert had a second step"
        return "there was no unconditional forward to leave out"

    def _why_not_halved(self) -> str:
        schedule = self._schedule
        if schedule is None and self._solver is not None and self._solver.timesteps.numel() == 0:
            return "the schedule has no steps; ask for 1 or more"
        if schedule is None:
            return "no expert call passed through halfframe, so this is a plain run's video; the host's loop is unknown"
        if schedule.steps[0].num_frames == 1:
            return "the clip has 1 latent frame, so there is none to leave out; ask for 5 video frames or more"
        if not any(step.expert == "high" for step in schedule.steps):
            return (
                f"no timestep of the schedule reaches the boundary {self.facts.boundary:g}, so the high-noise expert "
                "never ran; use a larger shift"
            )
        return f"{self._named} left out no frame" if self.strategy.halves else "no strategy was asked for"


def _checked(value: Any, shape: Sequence[int], like: Tensor | None, what: str) -> Tensor:
    """`value`, if it is a tensor of `shape` and, if given, of the dtype and device of `like`."""
    if not isinstance(value, Tensor):
        raise StrategyError(f"{what} is {type(value).__name__}; needed: a tensor of shape {tuple(shape)}.")
    if tuple(value.shape) != tuple(shape):
        raise StrategyError(f"{what} has shape {tuple(value.shape)}; needed: {tuple(shape)}, time at dim -3.")
    if like is not None and (value.dtype != like.dtype or value.device != like.device):
        raise StrategyError(
            f"{what} is {value.dtype} on {value.device}; needed: {like.dtype} on {like.device}, as the host has it."
        )
    return value


def _warn(message: str) -> None:
    warnings.warn(f"halfframe: {message}", HalfframeWarning, stacklevel=_callers_level())


def _callers_level() -> int:
    """The `stacklevel` at which a warning given by our caller points out of this package (and contextlib)."""
    level, frame = 1, sys._getframe(1)
    ours = (os.path.dirname(__file__), os.path.dirname(contextlib.__file__) + os.sep + "contextlib")
    while frame.f_back is not None and frame.f_code.co_filename.startswith(ours):
        level, frame = level + 1, frame.f_back
    return level


def _clips(call: Call) -> int:
    return math.prod(call.latents.shape[: frames.TIME_DIM - 1])


def _sample(result: Any) -> Tensor:
    """The new sample in a solver's result."""
    sample: Tensor = result[0] if isinstance(result, tuple) else result.prev_sample
    return sample


def _with_sample(result: Any, function: Callable[[Tensor], Tensor]) -> Any:
    """A solver's result with its new sample passed through `function`."""
    if isinstance(result, tuple):
        return (function(result[0]), *result[1:])
    result.prev_sample = function(result.prev_sample)
    return result
