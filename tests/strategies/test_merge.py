"""Means of frames: which, at what noise level, and that no clip in even motion is changed by them."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from halfframe import FrameMap, Interleave, Merge, Step

from .test_windowed import step

STEPS = st.builds(
    lambda index, num_frames, sigma, boundary: dataclasses.replace(
        step(index, num_frames=num_frames, sigma=sigma), boundary=boundary
    ),
    st.integers(0, 5),
    st.integers(2, 31),
    st.floats(0.9, 1.0),
    st.sampled_from([0.0, 875.0, 900.0]),
)


def of(strategy: Merge, now: Step) -> FrameMap:
    move = strategy.move(now)
    assert isinstance(move, FrameMap)
    return move


def pairs(strategy: Merge, now: Step) -> list[list[int]]:
    return [[position for position, weight in enumerate(row) if weight] for row in of(strategy, now).down]


def test_pairs_take_turns() -> None:
    assert pairs(Merge(), step(0, num_frames=7)) == [[0, 1], [2, 3], [4, 5], [5, 6]]
    assert pairs(Merge(), step(1, num_frames=7)) == [[0, 1], [1, 2], [3, 4], [5, 6]]
    assert pairs(Merge(full_start=1), step(1, num_frames=7)) == pairs(Merge(), step(0, num_frames=7))
    assert pairs(Merge(stride=3), step(2, num_frames=8)) == [[0, 1, 2], [2, 3, 4], [5, 6, 7]]
    assert Merge().move(step(6)) is None


@given(STEPS, st.integers(2, 5))
def test_every_frame_is_seen_at_every_step_and_no_more_than_its_share_is_computed(now: Step, stride: int) -> None:
    frame_map = of(Merge(stride=stride), now)
    assert len(frame_map.down) <= -(-now.num_frames // stride) + 1
    seen = [any(row[position] > 0 for row in frame_map.down) for position in range(now.num_frames)]
    assert all(seen) or frame_map.noise == pytest.approx(1)  # right at the boundary one frame is left of each
    places = [sum(w * p for p, w in enumerate(row)) for row in frame_map.down]
    assert frame_map.positions == pytest.approx(places)


@given(STEPS, st.integers(2, 5))
def test_the_expert_is_not_asked_for_noise_levels_of_the_other(now: Step, stride: int) -> None:
    size = min(stride, now.num_frames)
    noise = size**-0.5
    even = now.sigma * noise / (1 - now.sigma + now.sigma * noise)
    expected = max(even, now.boundary / 1000)
    assert of(Merge(stride=stride), now).sigma(now.sigma) == pytest.approx(expected, abs=1e-6)


@given(STEPS, st.integers(2, 4), st.booleans())
@settings(deadline=None)
def test_a_perfect_expert_gives_the_perfect_velocity_of_a_clip_in_even_motion(
    now: Step, stride: int, contiguous: bool
) -> None:
    """What is linear in time between the outermost means comes back as it was."""
    frame_map = of(Merge(stride=stride, positions="contiguous" if contiguous else "true"), now)
    time = torch.arange(now.num_frames, dtype=torch.float32).view(1, -1, 1, 1)
    x0 = 0.5 - 0.1 * time
    noise = torch.randn(1, now.num_frames, 3, 3, generator=torch.Generator().manual_seed(0))
    x = (1 - now.sigma) * x0 + now.sigma * noise
    level = frame_map.sigma(now.sigma)
    means = torch.einsum("kf,bfhw->bkhw", torch.tensor(frame_map.down), x0)
    prediction = (frame_map.reduce(x, now.sigma) - means) / level
    shown = x - now.sigma * frame_map.expand(prediction, x, now.sigma)
    places = [sum(w * p for p, w in enumerate(row)) for row in frame_map.down]
    inner = [p for p in range(now.num_frames) if places[0] <= p <= places[-1]]
    torch.testing.assert_close(shown[:, inner], x0.expand_as(shown)[:, inner], rtol=0, atol=1e-4)
    ends = shown[:, 0, 0, 0].item(), shown[:, -1, 0, 0].item()
    outermost = 0.5 - 0.1 * max(0, places[0]), 0.5 - 0.1 * min(now.num_frames - 1, places[-1])
    assert ends == pytest.approx(outermost, abs=1e-4)


def test_where_conditions_go_with_the_frames_it_is_interleave_and_says_so() -> None:
    now = dataclasses.replace(step(1), conditioned=True)
    assert Merge(stride=3).move(now) == Interleave(stride=3).move(now)
    assert of(Merge(stride=3), now).label == "interleave:3"
    assert of(Merge(stride=3), step(1)).label == "merge:3"
