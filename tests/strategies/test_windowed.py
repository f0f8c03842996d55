"""The strategies that make up skipped frames' x0: what they keep, what they make up, what they refuse."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from halfframe.strategies.denoised import Denoised
from halfframe.strategies.interleave import Interleave
from halfframe.strategies.interpolate import Interpolate
from halfframe.strategies.own_noise import OwnNoise
from hypothesis import given, settings
from hypothesis import strategies as st

from halfframe import OptionError, Step, frames
from halfframe.plugins import resolve_strategy
from halfframe.strategies.merge import Merge

from .test_strategies import allocation

ALL = pytest.mark.parametrize("cls", [OwnNoise, Interpolate, Interleave])


def step(index: int, *, num_frames: int = 9, sigma: float = 0.9, num_steps: int = 10, high_steps: int = 6) -> Step:
    high = index < high_steps
    return Step(
        index=index,
        num_steps=num_steps,
        timestep=1000 * sigma,
        sigma=sigma,
        expert="high" if high else "low",
        expert_index=index if high else index - high_steps,
        expert_steps=high_steps if high else num_steps - high_steps,
        num_frames=num_frames,
    )


def selected(strategy: Denoised, num_frames: int = 9) -> list[list[int] | None]:
    chosen = [strategy.select(step(i, num_frames=num_frames)) for i in range(10)]
    return [None if kept is None else list(kept) for kept in chosen]


def test_kept_frames_alternate_in_the_high_noise_phase() -> None:
    even, odd = [0, 2, 4, 6, 8], [0, 1, 3, 5, 7]
    assert selected(Interleave()) == [even, odd, even, odd, even, odd, None, None, None, None]
    assert selected(Interpolate()) == [even] * 6 + [None] * 4
    assert selected(OwnNoise()) == [even] * 6 + [None] * 4


def test_the_window() -> None:
    steps = [kept is not None for kept in selected(Interleave(full_start=1, full_end=2))]
    assert [i for i, halved in enumerate(steps) if halved] == [1, 2, 3]
    steps = [kept is not None for kept in selected(Interleave(full_start=2, full_end=1, until="end"))]
    assert [i for i, halved in enumerate(steps) if halved] == [2, 3, 4, 5, 6, 7, 8]
    steps = [kept is not None for kept in selected(Interleave(until=1))]
    assert [i for i, halved in enumerate(steps) if halved] == [0]
    steps = [kept is not None for kept in selected(Merge(full_start=1, full_end=1, until=4))]
    assert [i for i, halved in enumerate(steps) if halved] == [1, 2]
    assert selected(Interleave(until=50)) == selected(Interleave())  # not past the switch
    assert selected(Interleave(full_start=1))[1] == [0, 2, 4, 6, 8]  # turns are counted from the window's first step
    assert selected(Interleave(full_start=5, full_end=5)) == [None] * 10


@given(st.integers(1, 40), st.integers(2, 9), st.integers(1, 30))
def test_every_frame_has_its_turn(num_frames: int, stride: int, start: int) -> None:
    strategy = Interleave(stride=stride)
    turns = [
        strategy.select(step(i, num_frames=num_frames, num_steps=99, high_steps=99))
        for i in range(start, start + stride)
    ]
    computed = [set(range(num_frames)) if kept is None else set(kept) for kept in turns]
    assert set.union(*computed) == set(range(num_frames))
    for kept in computed:
        assert 0 in kept
        assert len(kept) <= -(-num_frames // stride) + 1


@ALL
@settings(deadline=None)  # torch's first calls take their time
@given(st.data())
def test_kept_frames_are_the_experts_and_skipped_ones_have_the_made_up_x0(cls: Any, data: st.DataObject) -> None:
    num_frames = data.draw(st.integers(2, 14))
    now = step(data.draw(st.integers(0, 5)), num_frames=num_frames, sigma=data.draw(st.floats(0.05, 1.0)))
    strategy = cls(stride=data.draw(st.integers(2, 5)))
    kept = strategy.select(now)
    if kept is None:
        return
    generator = torch.Generator().manual_seed(data.draw(st.integers(0, 99)))
    latents = torch.randn(2, num_frames, 1, 3, generator=generator)
    prediction = torch.randn(2, len(kept), 1, 3, generator=generator)
    velocity = strategy.fill(prediction, kept, now, 0, latents)
    assert torch.equal(velocity[:, list(kept)], prediction)
    x0 = latents - now.sigma * velocity
    made_up = (frames.hold if cls is OwnNoise else frames.interpolate)(x0[:, list(kept)], kept, num_frames)
    torch.testing.assert_close(x0, made_up, rtol=0, atol=1e-5)


@ALL
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_dtype_and_memory(cls: Any, dtype: torch.dtype) -> None:
    latents, prediction = torch.randn(1, 9, 2, 2).to(dtype), torch.randn(1, 5, 2, 2).to(dtype)
    before = latents.clone(), prediction.clone()
    filled = cls().fill(prediction, (0, 2, 4, 6, 8), step(0), 0, latents)
    assert filled.dtype == dtype
    assert torch.equal(latents, before[0])
    assert torch.equal(prediction, before[1])


@ALL
def test_all_frames_computed_is_the_experts_own_prediction(cls: Any) -> None:
    prediction = torch.randn(1, 9, 2, 2)
    assert cls().fill(prediction, tuple(range(9)), step(7), 0, torch.randn(1, 9, 2, 2)) is prediction


@ALL
def test_without_noise_there_is_no_velocity_to_make_up(cls: Any) -> None:
    filled = cls().fill(torch.ones(1, 2, 1, 1), (0, 2), step(0, num_frames=4, sigma=0.0), 0, torch.zeros(1, 4, 1, 1))
    assert filled.flatten().tolist() == [1, 1, 1, 1]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"stride": 0}, "stride=0 is no such number; give an integer of 1 or more"),
        ({"stride": 2.0}, "stride=2.0 is no such number"),
        ({"full_start": -1}, "full_start=-1 is no such number; give an integer of 0 or more"),
        ({"full_end": True}, "full_end=True is no such number"),
        ({"until": "boundary"}, "until='boundary' is unknown; needed: 'switch' or 'end' or a number of steps, 1 or"),
        ({"until": 0}, "until=0 is unknown; needed: 'switch' or 'end' or a number of steps, 1 or more"),
        ({"until": True}, "until=True is unknown"),
        ({"positions": "real"}, "positions='real' is unknown; needed: 'true' or 'contiguous'"),
    ],
)
@pytest.mark.parametrize("name", ["own-noise", "interpolate", "interleave", "merge"])
def test_bad_options(name: str, options: dict[str, Any], message: str) -> None:
    with pytest.raises(OptionError, match=message):
        resolve_strategy(name, options)


def test_an_option_that_there_is_not() -> None:
    with pytest.raises(
        OptionError, match=r"strategy 'interleave' does not fit strides=3.*Its options: stride=2, full_start=0, "
    ):
        resolve_strategy("interleave", {"strides": 3})


def test_short_noise_is_refused() -> None:
    with pytest.raises(OptionError, match="strategy 'interleave' carries latents of full length, so noise='short'"):
        Interleave().allocate(allocation((1, 9, 2, 2), "short"))
