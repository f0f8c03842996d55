"""Scheduler history through the expert switch, on the official package's UniPC and DPM-Solver++."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

from halfframe.sampling.frames import take
from halfframe.sampling.scheduler import is_linear, map_history, restart, sigma_at
from halfframe.strategies.expansion import self_duplicate
from halfframe.testing import import_wan

STEPS = 8
NUM_FRAMES = 13
SWITCH = 4
EVERY_SCHEDULER = pytest.mark.parametrize("kind", ["unipc", "dpm++"])
EVERY_ORDER = pytest.mark.parametrize("order", [1, 2, 3])


def scheduler_of(kind: str, order: int = 2) -> Any:
    """A scheduler as upstream's sampling loop builds it, of any order (upstream's is 2)."""
    wan = import_wan("text2video")
    arguments = {"num_train_timesteps": 1000, "shift": 1, "use_dynamic_shifting": False, "solver_order": order}
    if kind == "unipc":
        scheduler = wan.FlowUniPCMultistepScheduler(**arguments)
        scheduler.set_timesteps(STEPS, device="cpu", shift=12.0)
    else:
        scheduler = wan.FlowDPMSolverMultistepScheduler(**arguments)
        wan.retrieve_timesteps(scheduler, device="cpu", sigmas=wan.get_sampling_sigmas(STEPS, 12.0))
    return scheduler


def velocity(sample: Tensor, index: int) -> Tensor:
    """A stand-in for an expert: not linear, frame by frame, different at each step, exact whatever the length."""
    return sample * sample * sample * 0.1 - sample * (0.3 + 0.05 * index)


def advance(scheduler: Any, sample: Tensor, begin: int, end: int) -> Tensor:
    for index in range(begin, end):
        sample = scheduler.step(velocity(sample, index), scheduler.timesteps[index], sample, return_dict=False)[0]
    return sample


def mirrored(num_frames: int = NUM_FRAMES) -> Tensor:
    kept = torch.randn(1, 4, (num_frames + 1) // 2, 4, 4, generator=torch.Generator().manual_seed(0))
    return take(kept, [position // 2 for position in range(num_frames)])


def history_of(scheduler: Any) -> list[Tensor]:
    return [x for x in (*scheduler.model_outputs, getattr(scheduler, "last_sample", None)) if x is not None]


# Carrying the history over.


@EVERY_SCHEDULER
@EVERY_ORDER
@pytest.mark.parametrize("num_frames", [NUM_FRAMES, NUM_FRAMES - 1])
def test_a_half_length_run_duplicated_at_the_switch_is_the_mirrored_full_length_run(
    kind: str, order: int, num_frames: int
) -> None:
    full = mirrored(num_frames)
    whole_way = advance(scheduler_of(kind, order), full, 0, STEPS)

    scheduler = scheduler_of(kind, order)
    half = advance(scheduler, full[:, :, ::2].contiguous(), 0, SWITCH)
    assert map_history(scheduler, half, lambda x: self_duplicate(x, num_frames))
    expanded = self_duplicate(half, num_frames)
    result = advance(scheduler, expanded, SWITCH, STEPS)

    assert result.shape == full.shape
    if order < 3:
        assert torch.equal(result, whole_way)
    else:  # two terms of history are summed in a matrix product, whose rounding may depend on its size
        torch.testing.assert_close(result, whole_way, rtol=1e-6, atol=1e-6)


@EVERY_SCHEDULER
def test_an_expansion_that_mixes_frames_carries_the_history_too(kind: str) -> None:
    def blend(latents: Tensor) -> Tensor:
        between = 0.5 * (latents[:, :, :-1] + latents[:, :, 1:])
        stacked = torch.stack([latents[:, :, :-1], between], dim=3).flatten(2, 3)
        return torch.cat([stacked, latents[:, :, -1:]], dim=2)

    # With predictions that do not depend on the sample, every scheduler step is linear in the latents: expanding before
    # or after the rest of the schedule must then be the same.
    def run_on(scheduler: Any, sample: Tensor, begin: int, expert: Any) -> Tensor:
        for index in range(begin, STEPS):
            sample = scheduler.step(expert(index), scheduler.timesteps[index], sample, return_dict=False)[0]
        return sample

    fixed = torch.randn(STEPS, 1, 4, 7, 4, 4)
    start = torch.randn(1, 4, 7, 4, 4)
    late = blend(run_on(scheduler_of(kind), start, 0, lambda index: fixed[index]))

    scheduler, half = scheduler_of(kind), start
    for index in range(SWITCH):
        half = scheduler.step(fixed[index], scheduler.timesteps[index], half, return_dict=False)[0]
    assert map_history(scheduler, half, blend)
    early = run_on(scheduler, blend(half), SWITCH, lambda index: blend(fixed[index]))
    torch.testing.assert_close(early, late, rtol=1e-4, atol=1e-5)


@EVERY_SCHEDULER
def test_the_history_left_behind_would_not_even_fit(kind: str) -> None:
    scheduler = scheduler_of(kind)
    half = advance(scheduler, mirrored()[:, :, ::2].contiguous(), 0, SWITCH)
    with pytest.raises(RuntimeError, match="size of tensor"):
        advance(scheduler, self_duplicate(half, NUM_FRAMES), SWITCH, STEPS)


@EVERY_SCHEDULER
def test_a_function_that_adds_noise_leaves_the_history_alone(kind: str) -> None:
    scheduler = scheduler_of(kind)
    sample = advance(scheduler, mirrored(), 0, SWITCH)
    before = [x.clone() for x in history_of(scheduler)]
    assert not map_history(scheduler, sample, lambda x: x + torch.randn_like(x))
    assert all(torch.equal(x, y) for x, y in zip(history_of(scheduler), before, strict=True))


def test_a_scheduler_without_history_needs_nothing() -> None:
    euler = SimpleNamespace(timesteps=torch.tensor([900.0, 500.0]), sigmas=torch.tensor([0.9, 0.5, 0.0]))
    sample = torch.zeros(1, 2, 3, 4, 4)
    assert map_history(euler, sample, torch.randn_like)
    assert restart(euler, sample)


@EVERY_SCHEDULER
def test_a_scheduler_that_has_not_stepped_yet_needs_nothing(kind: str) -> None:
    scheduler, sample = scheduler_of(kind), mirrored()
    assert map_history(scheduler, sample, torch.randn_like)
    assert restart(scheduler, sample)
    assert torch.equal(advance(scheduler, sample, 0, STEPS), advance(scheduler_of(kind), sample, 0, STEPS))


def test_history_is_told_from_the_schedule_by_its_shape() -> None:
    scheduler = scheduler_of("unipc")
    sample = advance(scheduler, mirrored(), 0, SWITCH)
    timesteps, sigmas, held = scheduler.timesteps, scheduler.sigmas, list(scheduler.timestep_list)
    assert map_history(scheduler, sample, lambda x: x * 2)
    assert scheduler.timesteps is timesteps
    assert scheduler.sigmas is sigmas
    assert all(a is b for a, b in zip(scheduler.timestep_list, held, strict=True))


# Linear or not.


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize(
    ("function", "linear"),
    [
        (lambda x: self_duplicate(x, 13), True),
        (lambda x: 3 * x.flip(-3), True),
        (lambda x: x.cumsum(-3), True),
        (torch.zeros_like, True),
        (lambda x: x + 1, False),
        (lambda x: x + torch.ones_like(x) * 0.01, False),
        (lambda x: x + 0.1 * torch.randn_like(x), False),
        (torch.tanh, False),
        (lambda x: x / x.std(), False),
        (lambda x: x * float("nan"), False),
    ],
    ids=["duplicate", "flip", "cumsum", "zero", "offset", "small offset", "noise", "tanh", "normalise", "nan"],
)
def test_is_linear(function: Any, linear: bool, dtype: torch.dtype) -> None:
    generator = torch.Generator().manual_seed(0)
    x, h = (torch.randn(1, 4, 7, 4, 4, generator=generator, dtype=dtype) for _ in range(2))
    assert is_linear(function, x, h) is linear


# Starting afresh.


@EVERY_SCHEDULER
@EVERY_ORDER
def test_after_a_restart_the_scheduler_goes_on_like_one_that_begins_there(kind: str, order: int) -> None:
    scheduler = scheduler_of(kind, order)
    advance(scheduler, mirrored(), 0, SWITCH)
    rewritten = torch.randn(1, 4, NUM_FRAMES, 4, 4)
    assert restart(scheduler, rewritten)

    fresh = scheduler_of(kind, order)
    fresh.set_begin_index(SWITCH)
    assert torch.equal(advance(scheduler, rewritten, SWITCH, STEPS), advance(fresh, rewritten, SWITCH, STEPS))


@EVERY_SCHEDULER
@EVERY_ORDER
def test_the_first_step_after_a_restart_is_eulers(kind: str, order: int) -> None:
    scheduler = scheduler_of(kind, order)
    advance(scheduler, mirrored(), 0, SWITCH)
    rewritten = torch.randn(1, 4, NUM_FRAMES, 4, 4)
    assert restart(scheduler, rewritten)
    # First order on a straight path from noise to clip: x + (next sigma - sigma) v. A corrector would bring in the
    # sample from before the rewriting instead.
    euler = rewritten + (scheduler.sigmas[SWITCH + 1] - scheduler.sigmas[SWITCH]) * velocity(rewritten, SWITCH)
    torch.testing.assert_close(advance(scheduler, rewritten, SWITCH, SWITCH + 1), euler, rtol=1e-5, atol=1e-5)


def test_without_a_restart_unipcs_corrector_rebuilds_what_was_rewritten() -> None:
    scheduler = scheduler_of("unipc")
    advance(scheduler, mirrored(), 0, SWITCH)
    rewritten = torch.randn(1, 4, NUM_FRAMES, 4, 4)
    euler = rewritten + (scheduler.sigmas[SWITCH + 1] - scheduler.sigmas[SWITCH]) * velocity(rewritten, SWITCH)
    assert (advance(scheduler, rewritten, SWITCH, SWITCH + 1) - euler).abs().max() > 0.1


def test_a_scheduler_that_cannot_start_afresh_says_so_and_keeps_its_history() -> None:
    sample = torch.zeros(1, 2, 3, 4, 4)
    derivative = torch.ones_like(sample)
    heun = SimpleNamespace(prev_derivative=derivative)
    assert not restart(heun, sample)
    assert heun.prev_derivative is derivative


@EVERY_SCHEDULER
def test_sigma_comes_from_the_table(kind: str) -> None:
    scheduler = scheduler_of(kind)
    assert [sigma_at(scheduler, index) for index in range(STEPS + 1)] == scheduler.sigmas.tolist()
    assert sigma_at(scheduler, STEPS) == 0


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_what_is_linear_does_not_depend_on_the_precision(dtype: torch.dtype) -> None:
    x, h = torch.randn(2, 4, 5, 3, 3).to(dtype).unbind()
    assert is_linear(lambda t: 0.5 * t, x, h)
    assert not is_linear(lambda t: t + 0.01, x, h)
    assert not is_linear(torch.tanh, x, h)
