"""Means of frames: their arithmetic, their noise level, and that no clip in even motion is changed by them."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import pytest
import torch
from halfframe.seams import Call
from hypothesis import given, settings
from hypothesis import strategies as st

from halfframe import Mixture, OptionError, Step, frames
from halfframe.strategies.merge import Merge

from .test_denoised import step

STEPS = st.builds(
    lambda index, num_frames, sigma, boundary: dataclasses.replace(
        step(index, num_frames=num_frames, sigma=sigma), boundary=boundary
    ),
    st.integers(0, 5),
    st.integers(1, 31),
    st.floats(0.9, 1.0),
    st.sampled_from([0.0, 875.0, 900.0]),
)


def pairs(strategy: Merge, now: Step) -> list[list[int]]:
    mixture = strategy.mixture(now)
    assert mixture is not None
    return [[position for position, weight in enumerate(row) if weight] for row in mixture.weights]


def test_pairs_take_turns() -> None:
    assert pairs(Merge(), step(0, num_frames=7)) == [[0, 1], [2, 3], [4, 5], [5, 6]]
    assert pairs(Merge(), step(1, num_frames=7)) == [[0, 1], [1, 2], [3, 4], [5, 6]]
    assert pairs(Merge(full_start=1), step(1, num_frames=7)) == pairs(Merge(), step(0, num_frames=7))
    assert pairs(Merge(stride=3), step(2, num_frames=8)) == [[0, 1, 2], [2, 3, 4], [5, 6, 7]]
    assert Merge().select(step(6)) is None
    assert Merge().mixture(step(6)) is None


@given(STEPS, st.integers(2, 5))
def test_every_frame_is_seen_at_every_step_and_no_more_than_its_share_is_computed(now: Step, stride: int) -> None:
    strategy = Merge(stride=stride)
    starts, mixture = strategy.select(now), strategy.mixture(now)
    if starts is None:
        assert mixture is None
        assert now.num_frames <= 2 or stride > now.num_frames or now.num_frames <= -(-now.num_frames // stride) + 1
        return
    assert mixture is not None
    assert len(starts) == len(mixture.weights) <= -(-now.num_frames // stride) + 1
    assert all(any(row[position] > 0 for row in mixture.weights) for position in range(now.num_frames)) or (
        mixture.noise == pytest.approx(1)  # right at the boundary one frame is left of each
    )
    places = [sum(w * p for p, w in enumerate(row)) for row in mixture.weights]
    assert mixture.positions == pytest.approx(places)


@given(STEPS, st.integers(2, 5))
def test_the_expert_is_not_asked_for_noise_levels_of_the_other(now: Step, stride: int) -> None:
    mixture = Merge(stride=stride).mixture(now)
    if mixture is None:
        return
    size = min(stride, now.num_frames)
    even = Mixture((tuple(1 / size if p < size else 0.0 for p in range(now.num_frames)),), (0.0,)).sigma(now.sigma)
    expected = max(even, now.boundary / 1000)
    assert mixture.sigma(now.sigma) == pytest.approx(expected, abs=1e-6)


@given(STEPS, st.integers(2, 4), st.integers(0, 99))
@settings(deadline=None)
def test_a_mixture_is_a_frame_at_its_noise_level(now: Step, stride: int, seed: int) -> None:
    """By the definition: (1 - s) (mean of x0) + s eps, with eps of unit variance."""
    mixture = Merge(stride=stride).mixture(now)
    if mixture is None:
        return
    generator = torch.Generator().manual_seed(seed)
    x0 = torch.randn(1, now.num_frames, 2, 2, generator=generator)
    noise = torch.randn(1, now.num_frames, 120, 120, generator=generator)
    level = mixture.sigma(now.sigma)
    clean = mixture.of((1 - now.sigma) * x0, now.sigma)
    torch.testing.assert_close(clean, (1 - level) * frames.mix(x0, mixture.weights))
    left = mixture.of(now.sigma * noise, now.sigma) / level
    assert left.std().item() == pytest.approx(1, abs=0.05)


@given(STEPS, st.integers(2, 4), st.booleans())
@settings(deadline=None)
def test_a_perfect_expert_gives_the_perfect_velocity_of_a_clip_in_even_motion(
    now: Step, stride: int, contiguous: bool
) -> None:
    """What is linear in time between the outermost means comes back as it was."""
    strategy = Merge(stride=stride, positions="contiguous" if contiguous else "true")
    mixture = strategy.mixture(now)
    if mixture is None:
        return
    time = torch.arange(now.num_frames, dtype=torch.float32).view(1, -1, 1, 1)
    x0 = 0.5 - 0.1 * time
    noise = torch.randn(1, now.num_frames, 3, 3, generator=torch.Generator().manual_seed(0))
    x = (1 - now.sigma) * x0 + now.sigma * noise
    level = mixture.sigma(now.sigma)
    prediction = (mixture.of(x, now.sigma) - frames.mix(x0, mixture.weights)) / level
    velocity = strategy.fill(prediction, strategy.select(now) or (), now, 0, x)
    shown = x - now.sigma * velocity
    places = [sum(w * p for p, w in enumerate(row)) for row in mixture.weights]
    inner = [p for p in range(now.num_frames) if places[0] <= p <= places[-1]]
    torch.testing.assert_close(shown[:, inner], x0.expand_as(shown)[:, inner], rtol=0, atol=1e-4)
    ends = shown[:, 0, 0, 0].item(), shown[:, -1, 0, 0].item()
    assert ends == pytest.approx(
        (0.5 - 0.1 * max(0, places[0]), 0.5 - 0.1 * min(now.num_frames - 1, places[-1])), abs=1e-4
    )


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_dtype_and_memory(dtype: torch.dtype) -> None:
    latents, prediction = torch.randn(1, 9, 2, 2).to(dtype), torch.randn(1, 5, 2, 2).to(dtype)
    before = latents.clone(), prediction.clone()
    filled = Merge().fill(prediction, (0, 2, 4, 6, 7), step(0), 0, latents)
    assert filled.dtype == dtype
    assert filled.shape == latents.shape
    assert torch.equal(latents, before[0])
    assert torch.equal(prediction, before[1])


def test_all_frames_computed_is_the_experts_own_prediction() -> None:
    prediction = torch.randn(1, 9, 2, 2)
    assert Merge().fill(prediction, tuple(range(9)), step(7), 0, torch.randn(1, 9, 2, 2)) is prediction
    assert Merge().select(step(0, sigma=0.0)) is None


@pytest.mark.parametrize(
    ("weights", "positions"),
    [
        (((0.5, 0.4),), (0.5,)),  # no mean
        (((0.5, 0.5), (1.0, 0.0)), (0.5, 0.0)),  # two noise levels
        (((0.5, 0.5),), (0.5, 1.0)),
        ((), ()),
    ],
)
def test_what_is_no_mixture(weights: Any, positions: Any) -> None:
    with pytest.raises(OptionError, match=r"has no one noise level; needed: rows of sum 1 and of one sum of squares"):
        Mixture(weights, positions)


def test_a_mean_of_two() -> None:
    mixture = Mixture(((0.5, 0.5, 0.0),), (0.5,))
    assert mixture.noise == pytest.approx(math.sqrt(0.5))
    assert mixture.sigma(1.0) == 1.0
    assert mixture.sigma(0.5) == pytest.approx(0.4142, abs=1e-4)


def test_a_condition_that_a_host_does_not_pin_is_mixed_as_the_frames_are() -> None:
    condition, latents = torch.randn(2, 3, 9, 2, 2), torch.randn(2, 16, 9, 2, 2)
    now = step(0)
    mixture = Merge().mixture(now)
    assert mixture is not None
    call = Call(now, 0, latents, tuple(Merge().select(now) or ()), mixture.of(latents, now.sigma), 0, None, mixture)
    pairs = [(0, 1), (2, 3), (4, 5), (6, 7), (7, 8)]
    expected = torch.stack([(condition[:, :, a] + condition[:, :, b]) / 2 for a, b in pairs], dim=2)
    torch.testing.assert_close(call.cut(condition), expected)
