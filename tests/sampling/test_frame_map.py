"""Frame maps against arithmetic written out in float64 numpy."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from halfframe import FrameMap, StrategyError
from halfframe.sampling.frame_map import BoundMap
from halfframe.sampling.host import ForwardPass
from halfframe.sampling.strategy import Step


@st.composite
def selections(draw: st.DrawFn) -> tuple[int, list[int]]:
    """A clip length and some of its positions, increasing."""
    num_frames = draw(st.integers(1, 31))
    return num_frames, sorted(draw(st.sets(st.integers(0, num_frames - 1), min_size=1)))


def clip(num_frames: int, seed: int = 0, leading: tuple[int, ...] = (2,)) -> torch.Tensor:
    return torch.randn(*leading, num_frames, 2, 3, generator=torch.Generator().manual_seed(seed))


def held(kept: list[int], num_frames: int) -> list[int]:
    """For each frame the one of `kept` that stands for it."""
    return [max((k for k in kept if k <= frame), default=kept[0]) for frame in range(num_frames)]


@given(selections(), st.sampled_from(["hold", "linear"]), st.floats(0.05, 1.0), st.integers(0, 99))
@settings(deadline=None)
def test_a_selection_by_the_definition(selection: tuple[int, list[int]], between: Any, sigma: float, seed: int) -> None:
    num_frames, kept = selection
    frame_map = FrameMap.select(kept, num_frames, between=between)
    x, velocity = clip(num_frames, seed), clip(len(kept), seed + 1)
    assert frame_map.kept == tuple(kept)
    assert frame_map.sigma(sigma) == sigma
    assert torch.equal(frame_map.reduce(x, sigma), x[:, kept])

    full = frame_map.expand(velocity, x, sigma)
    assert torch.equal(full[:, kept], velocity)  # a computed frame has its own velocity, to the bit
    shown = x[:, kept].double().numpy() - sigma * velocity.double().numpy()
    if between == "hold":
        expected = shown[:, [kept.index(k) for k in held(kept, num_frames)]]
    else:
        lines = np.moveaxis(shown, 1, -1).reshape(-1, len(kept))
        filled = np.stack([np.interp(range(num_frames), kept, line) for line in lines])
        expected = np.moveaxis(filled.reshape(2, 2, 3, num_frames), -1, 1)
    found = x.double().numpy() - sigma * full.double().numpy()
    np.testing.assert_allclose(found, expected, rtol=0, atol=2e-5)


@given(selections(), st.floats(0.05, 1.0))
@settings(deadline=None)
def test_a_mirrored_frame_has_the_velocity_of_the_one_it_mirrors_to_the_bit(
    selection: tuple[int, list[int]], sigma: float
) -> None:
    num_frames, kept = selection
    sources = [kept.index(k) for k in held(kept, num_frames)]
    x, velocity = clip(len(kept))[:, sources], clip(len(kept), 1)
    full = FrameMap.select(kept, num_frames, between="hold").expand(velocity, x, sigma)
    assert torch.equal(full, velocity[:, sources])


@given(st.integers(2, 20), st.integers(2, 4), st.floats(0.5, 0.999), st.integers(0, 99))
@settings(deadline=None)
def test_means_by_the_definition(num_frames: int, size: int, sigma: float, seed: int) -> None:
    size = min(size, num_frames)
    starts = sorted({*range(0, num_frames - size + 1, size), num_frames - size})
    rows = [[1 / size if start <= frame < start + size else 0.0 for frame in range(num_frames)] for start in starts]
    frame_map = FrameMap.mean(rows)
    noise = math.sqrt(1 / size)
    assert frame_map.noise == pytest.approx(noise if size > 1 else 1)
    level = sigma * noise / (1 - sigma + sigma * noise)
    assert frame_map.sigma(sigma) == pytest.approx(level)
    centres = [start + (size - 1) / 2 for start in starts]
    assert frame_map.positions == pytest.approx(centres)

    x, velocity = clip(num_frames, seed), clip(len(rows), seed + 1)
    table = np.array(rows)
    reduced = np.einsum("kf,bfhw->bkhw", table, x.double().numpy()) / (1 - sigma + sigma * noise)
    np.testing.assert_allclose(frame_map.reduce(x, sigma).numpy(), reduced, rtol=0, atol=1e-5)

    shown = np.moveaxis(reduced - level * velocity.double().numpy(), 1, -1).reshape(-1, len(rows))
    filled = np.stack([np.interp(range(num_frames), centres, line) for line in shown])
    expected = np.moveaxis(filled.reshape(2, 2, 3, num_frames), -1, 1)
    found = x.double().numpy() - sigma * frame_map.expand(velocity, x, sigma).double().numpy()
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-4)


def test_a_mean_has_the_noise_level_that_the_expert_is_told() -> None:
    """By measuring: (1 - s) (mean of x0) + s eps, with eps of unit variance."""
    frame_map, sigma = FrameMap.mean([[0.5, 0.5, 0, 0], [0, 0, 0.5, 0.5]]), 0.9
    noise = torch.randn(1, 4, 200, 200, generator=torch.Generator().manual_seed(0))
    level = frame_map.sigma(sigma)
    assert (frame_map.reduce(sigma * noise, sigma) / level).std().item() == pytest.approx(1, abs=0.01)
    flat = torch.full((1, 4, 2, 2), 3.0)
    torch.testing.assert_close(frame_map.reduce((1 - sigma) * flat, sigma), (1 - level) * flat[:, :2])


@pytest.mark.parametrize("leading", [(), (3,), (2, 3)])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
def test_dtype_leading_dims_and_memory(leading: tuple[int, ...], dtype: torch.dtype) -> None:
    for frame_map in (FrameMap.select([0, 2, 4], 5), FrameMap.mean([[0.5, 0.5, 0, 0, 0], [0, 0, 0, 0.5, 0.5]])):
        count = len(frame_map.down)
        x, velocity = clip(5, 0, leading).to(dtype), clip(count, 1, leading).to(dtype)
        before = x.clone(), velocity.clone()
        reduced, full = frame_map.reduce(x, 0.9), frame_map.expand(velocity, x, 0.9)
        assert (reduced.dtype, full.dtype) == (dtype, dtype)
        assert (reduced.shape, full.shape) == (velocity.shape, x.shape)
        assert torch.equal(x, before[0])
        assert torch.equal(velocity, before[1])
        if leading:
            torch.testing.assert_close(full[0], frame_map.expand(velocity[0], x[0], 0.9))


def test_without_noise_there_is_no_velocity_to_make_up() -> None:
    frame_map = FrameMap.select([0, 2], 4, between="hold")
    assert frame_map.expand(torch.ones(1, 2, 1, 1), torch.zeros(1, 4, 1, 1), 0.0).flatten().tolist() == [1, 1, 1, 1]


def test_gradients_flow() -> None:
    x, velocity = torch.randn(5, 1, 1, requires_grad=True), torch.randn(2, 1, 1, requires_grad=True)
    FrameMap.select([0, 3], 5).expand(velocity, x, 0.5).sum().backward()
    assert velocity.grad is not None
    assert torch.isfinite(velocity.grad).all()


def test_tables_are_made_once_per_step_and_device(monkeypatch: pytest.MonkeyPatch) -> None:
    made = []
    plain = torch.tensor
    monkeypatch.setattr(torch, "tensor", lambda *args, **kwargs: made.append(args) or plain(*args, **kwargs))
    bound = BoundMap(FrameMap.mean([[0.5, 0.5, 0, 0], [0, 0, 0.5, 0.5]]), 0.9)
    for _ in range(3):
        bound.reduce(clip(4))
        bound.cut(clip(4))
        bound.expand(clip(2), clip(4))
    assert len(made) == 2  # down and up


def test_positions_that_every_host_gives_by_itself() -> None:
    assert BoundMap(FrameMap.select([0, 2], 4, positions="contiguous"), 0.5).positions is None
    assert BoundMap(FrameMap.select([0, 2], 4), 0.5).positions == (0, 2)
    assert BoundMap(FrameMap.mean([[0.5, 0.5, 0], [0, 0.5, 0.5]]), 0.5).positions == (0.5, 1.5)


# Frames with a condition of their own.


@given(selections(), st.data(), st.sampled_from(["hold", "linear"]), st.sampled_from(["true", "contiguous"]))
@settings(deadline=None)
def test_including_computes_frames_as_they_are(
    selection: tuple[int, list[int]], data: st.DataObject, between: Any, positions: Any
) -> None:
    num_frames, kept = selection
    own = sorted(data.draw(st.sets(st.integers(0, num_frames - 1))))
    frame_map = FrameMap.select(kept, num_frames, between=between, positions=positions)
    including = frame_map.including(own)
    every = sorted({*kept, *own})
    assert including.kept == tuple(every)
    assert including.including(own) is including
    x, velocity = clip(num_frames), clip(len(every), 1)
    full = including.expand(velocity, x, 0.7)
    for frame in own:
        assert torch.equal(full[:, frame], velocity[:, every.index(frame)])
    without = frame_map.expand(velocity[:, [every.index(k) for k in kept]], x, 0.7)
    others = [frame for frame in range(num_frames) if frame not in own]
    torch.testing.assert_close(full[:, others], without[:, others])  # the others are had as before


def test_means_include_no_single_frame() -> None:
    frame_map = FrameMap.mean([[0.5, 0.5, 0], [0, 0.5, 0.5]])
    assert frame_map.including(()) is frame_map
    with pytest.raises(StrategyError, match=r"means of frames, but frames \[2\] have a condition of their own"):
        frame_map.including((2,))


def test_a_condition_is_mixed_as_the_frames_are_without_scaling() -> None:
    frame_map = FrameMap.mean([[0.5, 0.5, 0], [0, 0.5, 0.5]])
    step = Step(0, 4, 900.0, 0.9, "high", 0, 2, 3)
    condition = clip(3)
    made = ForwardPass(step, BoundMap(frame_map, 0.9), clip(2), 8)
    torch.testing.assert_close(made.cut(condition), (condition[:, :2] + condition[:, 1:]) / 2)
    told = made.timestep(torch.tensor([900]))
    assert told.item() == pytest.approx(1000 * frame_map.sigma(0.9), rel=1e-6)
    assert ForwardPass(step, None, clip(3), 12).cut(condition) is condition


# What is no map.


@pytest.mark.parametrize(
    ("down", "up", "positions", "message"),
    [
        (((1.0, 0.0),), ((1.0,),), (0.0,), "does not fit together; needed: K rows of F weights down"),
        ((), (), (), "does not fit together"),
        (((0.5, 0.4),), ((1.0,), (1.0,)), (0.0,), "weights do not sum to 1; divide each row by its sum"),
        (((0.5, 0.5), (1.0, 0.0)), ((1.0, 0.0), (0.0, 1.0)), (0.0, 1.0), "mixes noise levels; needed: rows down"),
        (((1.0, 0.0),), ((1.0,), (1.0,)), (7.0,), r"unusable positions; needed: 1 increasing numbers in 0..1"),
        (((1.0, 0.0),), ((1.0,), (1.0,)), (float("nan"),), "unusable positions"),
        (((float("nan"), 1.0),), ((1.0,), (1.0,)), (0.0,), "do not sum to 1"),
    ],
)
def test_what_is_no_frame_map(down: Any, up: Any, positions: Any, message: str) -> None:
    with pytest.raises(StrategyError, match=message):
        FrameMap(down, up, positions)


@pytest.mark.parametrize("kept", [(), (1, 1), (2, 1), (-1, 0), (0, 5), (0.5,)])
def test_what_selects_no_frames(kept: Any) -> None:
    with pytest.raises(StrategyError, match=r"of a clip of 5 latent frames; needed"):
        FrameMap.select(kept, 5)
