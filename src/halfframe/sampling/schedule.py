"""The schedule of one run: which expert serves which step, and what is done there."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from torch import Tensor

from halfframe.errors import HalfframeError, StrategyError
from halfframe.sampling.frame_map import FrameMap
from halfframe.sampling.scheduler import Scheduler, sigma_at
from halfframe.sampling.strategy import Expert, Given, Move, Reuse, Step, Strategy

__all__ = ["Schedule", "experts_by_boundary", "planned_move", "scheduler_steps", "steps_of"]


@dataclass(frozen=True, slots=True)
class Schedule:
    """Steps, and the strategy's move at each."""

    steps: tuple[Step, ...]
    moves: tuple[Move, ...]

    @classmethod
    def plan(cls, steps: Sequence[Step], strategy: Strategy) -> Schedule:
        """Ask `strategy` for its moves.

        Raises:
            StrategyError: it does not accept the schedule, failed, or did not return a move; the message says which.
        """
        try:
            strategy.accept(steps)
        except StrategyError as error:
            raise StrategyError(f"strategy {strategy.name!r}: {error}") from error
        return cls(tuple(steps), tuple(planned_move(step, strategy) for step in steps))

    @property
    def maps(self) -> bool:
        """Whether any step computes fewer than all frames."""
        return any(isinstance(move, FrameMap) for move in self.moves)

    @property
    def reuses(self) -> int:
        """How many earlier predictions a step may reuse at most."""
        return max((move.needs for move in self.moves if isinstance(move, Reuse)), default=0)


def planned_move(step: Step, strategy: Strategy) -> Move:
    """What `strategy` does at `step`, checked, with the conditioning frames computed.

    Raises:
        StrategyError: it failed, or did not return a move; the message names it and the step.
    """
    where = f"strategy {strategy.name!r}, at step {step.index + 1} of {step.num_steps}"
    try:
        move = strategy.move(step)
    except StrategyError as error:
        raise StrategyError(f"{where}: {error}") from error
    except HalfframeError:
        raise
    except Exception as error:
        raise StrategyError(f"{where}: `move` failed: {type(error).__name__}: {error}") from error
    if not isinstance(move, FrameMap | Reuse | Given | None):
        raise StrategyError(
            f"{where}: `move` returned {type(move).__name__}; needed: a halfframe.FrameMap, a halfframe.Reuse, or None "
            "for all frames."
        )
    if not isinstance(move, FrameMap):
        return move
    if len(move.up) != step.num_frames:
        raise StrategyError(
            f"{where}: the frame map is for a clip of {len(move.up)} latent frames; needed: {step.num_frames}."
        )
    try:
        move = move.including(step.conditioning_frames)
    except StrategyError as error:
        raise StrategyError(f"{where}: {error}") from error
    return None if move.kept == tuple(range(step.num_frames)) else move


def experts_by_boundary(timesteps: Sequence[float], boundary: float) -> list[Expert]:
    """Which expert serves each of `timesteps` 0..1000: the high-noise one where it is `boundary` or more."""
    return ["high" if timestep >= boundary else "low" for timestep in timesteps]


def steps_of(timesteps: Sequence[float], sigmas: Sequence[float], experts: Sequence[Expert], like: Step) -> list[Step]:
    """The steps of a schedule; what they have in common is taken from `like`."""
    return [
        replace(
            like,
            index=index,
            num_steps=len(timesteps),
            timestep=timestep,
            sigma=sigma,
            expert=expert,
            expert_index=experts[:index].count(expert),
            expert_steps=experts.count(expert),
        )
        for index, (timestep, sigma, expert) in enumerate(zip(timesteps, sigmas, experts, strict=True))
    ]


def scheduler_steps(
    scheduler: Scheduler,
    boundary: float,
    num_frames: int,
    conditioning_frames: Sequence[int] = (),
    conditioned: bool = False,
    experts: Callable[[Sequence[float], float], Sequence[Expert]] = experts_by_boundary,
) -> list[Step]:
    """The steps of a host's scheduler; the high-noise expert serves timesteps ``>= boundary``.

    The split between the experts is read off the scheduler's timesteps, as the hosts do, and never off a formula; sigma
    comes from the scheduler's table, because UniPC rounds its timesteps.

    Raises:
        HalfframeError: the scheduler is not for flow matching.
    """
    reason = _why_no_flow(scheduler)
    if reason:
        raise HalfframeError(
            f"{type(scheduler).__name__} {reason}, so it is not a flow-matching scheduler; use UniPC or DPM-Solver++ "
            "with use_flow_sigmas=True and prediction_type='flow_prediction', FlowMatchEuler or FlowMatchHeun, as "
            "Wan's pipelines do."
        )
    timesteps = [float(t) for t in scheduler.timesteps.tolist()]  # one transfer, not one per step
    sigmas = [sigma_at(scheduler, index) for index in range(len(timesteps))]
    frames = tuple(sorted({position % num_frames for position in conditioning_frames}))
    like = Step(0, 0, 0.0, 0.0, "high", 0, 0, num_frames, boundary, conditioned, frames)
    return steps_of(timesteps, sigmas, experts(timesteps, boundary), like)


def _why_no_flow(scheduler: Scheduler) -> str:
    sigmas = getattr(scheduler, "sigmas", None)
    if not isinstance(sigmas, Tensor):
        return "has no table of sigmas"
    prediction = getattr(getattr(scheduler, "config", None), "prediction_type", "flow_prediction")
    if prediction != "flow_prediction":
        return f"has prediction_type {prediction!r}"
    # A shift far below 1 leaves Euler's and Heun's first sigma a rounding of their table above 1.
    if sigmas.numel() and not (0 <= float(sigmas.min()) <= float(sigmas.max()) <= 1.001):
        return f"has sigmas from {float(sigmas.min()):g} to {float(sigmas.max()):g}, beyond 0..1"
    if (sigmas.diff() > 1e-6).any():
        return "has sigmas that rise"
    return ""
