"""The schedule of one run: which expert serves which step, and which latent frames it computes there."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch

from halfframe import frames, solvers
from halfframe.errors import HalfframeError, StrategyError
from halfframe.strategies.base import Expert, Step

__all__ = ["Schedule"]


@dataclass(frozen=True, slots=True)
class Schedule:
    """Steps, and for each the kept latent frames (None: all of them) and those among them that the strategy chose.

    The split between the experts is read off the solver's timesteps, as the hosts do, and never off a formula; sigma
    comes from the solver's table, because UniPC rounds its timesteps.
    """

    steps: tuple[Step, ...]
    kept: tuple[tuple[int, ...] | None, ...]
    chosen: tuple[tuple[int, ...] | None, ...]

    @classmethod
    def plan(
        cls,
        solver: solvers.Solver,
        boundary: float,
        num_frames: int,
        select: Callable[[Step], Sequence[int] | None],
        pinned: Sequence[int] = (),
        strategy_name: str = "",
        conditioned: bool = False,
    ) -> Schedule:
        """Lay out a run over `num_frames` latent frames; the high-noise expert serves timesteps ``>= boundary``.

        Frames in `pinned` are kept beside the strategy's choice wherever it leaves any out.
        """
        if not isinstance(getattr(solver, "sigmas", None), torch.Tensor):
            raise HalfframeError(
                f"{type(solver).__name__} has no table of sigmas, so it is no flow-matching solver; use UniPC, "
                "DPM-Solver++, FlowMatchEuler or FlowMatchHeun, as Wan's pipelines do."
            )
        timesteps = [float(t) for t in solver.timesteps.tolist()]  # one transfer, not one per step
        experts: list[Expert] = ["high" if t >= boundary else "low" for t in timesteps]
        steps = tuple(
            Step(
                index=index,
                num_steps=len(timesteps),
                timestep=timestep,
                sigma=solvers.sigma_at(solver, index),
                expert=expert,
                expert_index=experts[:index].count(expert),
                expert_steps=experts.count(expert),
                num_frames=num_frames,
                boundary=boundary,
                conditioned=conditioned,
            )
            for index, (timestep, expert) in enumerate(zip(timesteps, experts, strict=True))
        )
        chosen = tuple(_choose(step, select(step), strategy_name) for step in steps)
        kept = tuple(None if c is None else _with_pinned(c, pinned, num_frames) for c in chosen)
        return cls(steps, kept, chosen)

    @property
    def halves(self) -> bool:
        """Whether any step leaves a frame out."""
        return any(kept is not None for kept in self.kept)


def _choose(step: Step, selection: Sequence[int] | None, strategy_name: str) -> tuple[int, ...] | None:
    if selection is None:
        return None
    try:
        return frames.check_indices(selection, step.num_frames)
    except HalfframeError as error:
        raise StrategyError(f"strategy {strategy_name!r}, at step {step.index}: {error}") from error


def _with_pinned(chosen: tuple[int, ...], pinned: Sequence[int], num_frames: int) -> tuple[int, ...] | None:
    kept = tuple(sorted({*chosen, *pinned}))
    return None if len(kept) == num_frames else kept
