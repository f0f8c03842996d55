"""The split between the experts, read off the real schedulers of the official package, and the frames of each step."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from halfframe import FrameMap, Reuse, Step, Strategy, StrategyError
from halfframe.sampling.schedule import Schedule, scheduler_steps
from halfframe.testing import import_wan

BOUNDARY_T2V = 875.0
SOLVERS = ["unipc", "dpm++"]


def solver_of(kind: str, steps: int, shift: float) -> Any:
    """A scheduler as upstream's sampling loop builds it."""
    wan = import_wan("text2video")
    if kind == "unipc":
        solver = wan.FlowUniPCMultistepScheduler(num_train_timesteps=1000, shift=1, use_dynamic_shifting=False)
        solver.set_timesteps(steps, device="cpu", shift=shift)
    else:
        solver = wan.FlowDPMSolverMultistepScheduler(num_train_timesteps=1000, shift=1, use_dynamic_shifting=False)
        wan.retrieve_timesteps(solver, device="cpu", sigmas=wan.get_sampling_sigmas(steps, shift))
    return solver


class Mine(Strategy):
    """Answers with a function."""

    name = "mine"

    def __init__(self, move: Any) -> None:
        self.move = move


def plan(
    scheduler: Any,
    move: Any = lambda step: None,
    *,
    boundary: float = BOUNDARY_T2V,
    num_frames: int = 13,
    conditioning_frames: Sequence[int] = (),
) -> Schedule:
    steps = scheduler_steps(scheduler, boundary, num_frames, conditioning_frames)
    return Schedule.plan(steps, Mine(move))


def high_half(step: Step) -> FrameMap | None:
    return FrameMap.select(range(0, step.num_frames, 2), step.num_frames) if step.expert == "high" else None


def kept(schedule: Schedule) -> list[tuple[int, ...] | None]:
    return [move.kept if isinstance(move, FrameMap) else None for move in schedule.moves]


@pytest.mark.parametrize("kind", SOLVERS)
@pytest.mark.parametrize(("steps", "high", "low"), [(20, 13, 7), (40, 26, 14)])
def test_the_sources_split_at_shift_12(kind: str, steps: int, high: int, low: int) -> None:
    schedule = plan(solver_of(kind, steps, 12.0))
    assert [step.expert for step in schedule.steps] == ["high"] * high + ["low"] * low
    assert {step.expert_steps for step in schedule.steps[:high]} == {high}
    assert {step.expert_steps for step in schedule.steps[high:]} == {low}


@pytest.mark.parametrize("kind", SOLVERS)
def test_i2vs_defaults_give_the_high_noise_expert_about_a_third(kind: str) -> None:
    schedule = plan(solver_of(kind, 40, 5.0), boundary=900.0)
    assert schedule.steps[0].expert_steps == pytest.approx(14, abs=1)


@settings(max_examples=40, deadline=None)
@given(kind=st.sampled_from(SOLVERS), steps=st.integers(1, 60), shift=st.floats(1, 20), boundary=st.floats(1, 999))
def test_every_step_is_placed_and_agrees_with_upstreams_test(
    kind: str, steps: int, shift: float, boundary: float
) -> None:
    solver = solver_of(kind, steps, shift)
    schedule = plan(solver, boundary=boundary)
    # Upstream's own words: `t.item() >= boundary` picks the high-noise expert.
    assert [step.expert == "high" for step in schedule.steps] == [t.item() >= boundary for t in solver.timesteps]
    assert [step.index for step in schedule.steps] == list(range(steps))
    assert {step.num_steps for step in schedule.steps} == {steps}
    for expert in ("high", "low"):
        mine = [step for step in schedule.steps if step.expert == expert]
        assert [step.expert_index for step in mine] == list(range(len(mine)))
        assert all(step.expert_steps == len(mine) for step in mine)


def test_a_timestep_on_the_boundary_is_the_high_noise_experts() -> None:
    solver = solver_of("unipc", 20, 12.0)
    on_it = float(solver.timesteps[4])
    assert [step.expert for step in plan(solver, boundary=on_it).steps[:6]] == ["high"] * 5 + ["low"]


def test_sigma_is_the_solvers_own_and_not_the_rounded_timestep() -> None:
    schedule = plan(solver_of("unipc", 20, 12.0))
    sigma = np.linspace(1 - 1 / 1000, 0, 21)[:-1]
    shifted = 12 * sigma / (1 + 11 * sigma)
    assert [step.sigma for step in schedule.steps] == pytest.approx(shifted.tolist(), abs=1e-6)
    off = [abs(step.sigma - step.timestep / 1000) for step in schedule.steps]
    assert max(off) > 1e-4  # UniPC cuts timesteps to whole numbers, so reading sigma off them would be wrong
    assert max(off) < 1e-3


def test_the_strategy_is_asked_once_per_step_in_order() -> None:
    asked: list[Step] = []
    schedule = plan(solver_of("unipc", 8, 12.0), asked.append)
    assert tuple(asked) == schedule.steps
    assert {step.num_frames for step in asked} == {13}


def test_the_strategys_moves() -> None:
    schedule = plan(solver_of("unipc", 20, 12.0), high_half)
    assert set(kept(schedule)[:13]) == {(0, 2, 4, 6, 8, 10, 12)}
    assert set(schedule.moves[13:]) == {None}
    assert schedule.maps
    assert not schedule.reuses
    assert plan(solver_of("unipc", 4, 12.0), lambda step: Reuse() if step.index else None).reuses == 1
    assert plan(solver_of("unipc", 4, 12.0), lambda step: Reuse((2, -1)) if step.index > 1 else None).reuses == 2
    assert not plan(solver_of("unipc", 20, 12.0)).maps


def test_naming_every_frame_is_leaving_none_out() -> None:
    every = plan(solver_of("unipc", 4, 12.0), lambda step: FrameMap.select(range(step.num_frames), step.num_frames))
    assert set(every.moves) == {None}
    assert not every.maps


def test_conditioning_frames_join_the_strategys_choice() -> None:
    schedule = plan(solver_of("unipc", 20, 12.0), high_half, num_frames=6, conditioning_frames=(0, -1))
    assert {step.conditioning_frames for step in schedule.steps} == {(0, 5)}
    assert kept(schedule)[0] == (0, 2, 4, 5)
    assert schedule.moves[-1] is None


def test_conditioning_frames_that_complete_the_clip_leave_nothing_to_skip() -> None:
    schedule = plan(solver_of("unipc", 20, 12.0), high_half, num_frames=2, conditioning_frames=(1,))
    assert set(schedule.moves) == {None}


@pytest.mark.parametrize(
    ("move", "message"),
    [
        (lambda step: FrameMap.select((0, 0), step.num_frames), r"frame indices \[0, 0\] do not select .* in 0\.\.12"),
        (lambda step: [0, 2], "`move` returned list; needed: a halfframe.FrameMap, a halfframe.Reuse, or None"),
        (lambda step: 1 / 0, "`move` failed: ZeroDivisionError: division by zero"),
        (lambda step: FrameMap.select((0,), 4), "the frame map is for a clip of 4 latent frames; needed: 13"),
    ],
)
def test_a_bad_move_names_the_strategy_the_step_and_what_is_needed(move: Any, message: str) -> None:
    with pytest.raises(StrategyError, match=f"strategy 'mine', at step 6 of 20: {message}"):
        plan(solver_of("unipc", 20, 12.0), lambda step: move(step) if step.index == 5 else None)
