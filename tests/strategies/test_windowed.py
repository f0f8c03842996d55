"""The strategies with a window of steps: which frames they compute and when, and what they refuse."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from halfframe import DEFAULT_STRATEGY, FrameMap, Interleave, Interpolate, Merge, OptionError, OwnNoise, Step
from halfframe.plugins.strategies import resolve_strategy


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


def selected(strategy: Any, num_frames: int = 9) -> list[list[int] | None]:
    moves = [strategy.move(step(i, num_frames=num_frames)) for i in range(10)]
    return [None if move is None else list(move.kept or ()) for move in moves]


def window(strategy: Any) -> list[int]:
    return [index for index in range(10) if strategy.move(step(index)) is not None]


def test_kept_frames_alternate_in_the_high_noise_phase() -> None:
    even, odd = [0, 2, 4, 6, 8], [0, 1, 3, 5, 7]
    assert selected(Interleave()) == [even, odd, even, odd, even, odd, None, None, None, None]
    assert selected(Interpolate()) == [even] * 6 + [None] * 4
    assert selected(OwnNoise()) == [even] * 6 + [None] * 4


def test_the_window() -> None:
    assert window(Interleave(full_start=1, full_end=2)) == [1, 2, 3]
    assert window(Interleave(full_start=2, full_end=1, until="end")) == [2, 3, 4, 5, 6, 7, 8]
    assert window(Interleave(until=1)) == [0]
    assert window(Merge(full_start=1, full_end=1, until=4)) == [1, 2]
    assert selected(Interleave(until=50)) == selected(Interleave())  # not past the switch
    assert selected(Interleave(full_start=1))[1] == [0, 2, 4, 6, 8]  # turns are counted from the window's first step
    assert window(Interleave(full_start=5, full_end=5)) == []
    assert window(Interleave(stride=1)) == []
    assert Interleave().move(step(0, sigma=0.0)) is None


def test_a_window_down_to_a_noise_level() -> None:
    strategy = Interleave(until=0.99)
    levels = [0.98, 1.0, 0.995, 0.99, 0.98]  # the expert's first step is within the window whatever its level
    assert [strategy.move(step(i, sigma=level)) is not None for i, level in enumerate(levels)] == [
        True,
        True,
        True,
        True,
        False,
    ]
    assert strategy.move(step(7, sigma=0.995)) is None  # the low-noise expert's
    with pytest.raises(OptionError, match=r"full_end=1 counts from the end of a window.*until=0\.5 is a noise level"):
        Interleave(until=0.5, full_end=1)
    for unusable in (0.0, 1.0, 1.5, float("nan")):
        with pytest.raises(OptionError, match="a noise level between 0 and 1"):
            Interleave(until=unusable)


def test_the_defaults_options_give_way() -> None:
    chosen = resolve_strategy(DEFAULT_STRATEGY, {"until": 5, "stride": 3})
    assert str(chosen) == "interleave:stride=3,until=5"
    with pytest.raises(OptionError, match="until is given twice"):
        resolve_strategy("interleave:until=0.9", {"until": 5})


def test_what_the_others_show_and_where_frames_are() -> None:
    shown = {cls: cls().move(step(0)) for cls in (OwnNoise, Interpolate, Interleave)}
    for cls, between in ((OwnNoise, "hold"), (Interpolate, "linear"), (Interleave, "linear")):
        assert shown[cls] == FrameMap.select((0, 2, 4, 6, 8), 9, between=between)  # type: ignore[arg-type]
        assert shown[cls].label == f"{cls.name}:2"
        assert cls(positions="contiguous").move(step(0)).positions == (0, 1, 2, 3, 4)


@given(st.integers(2, 40), st.integers(2, 9), st.integers(1, 30))
def test_every_frame_has_its_turn(num_frames: int, stride: int, start: int) -> None:
    strategy = Interleave(stride=stride)
    steps = [step(i, num_frames=num_frames, num_steps=99, high_steps=99) for i in range(start, start + stride)]
    computed = [set(strategy.move(one).kept) for one in steps]  # type: ignore[union-attr, arg-type]
    assert set.union(*computed) == set(range(num_frames))
    for kept in computed:
        assert 0 in kept
        assert len(kept) <= -(-num_frames // stride) + 1


def test_conditioning_frames_are_computed() -> None:
    import dataclasses

    now = dataclasses.replace(step(0, num_frames=12), conditioning_frames=(11,))
    for strategy in (OwnNoise(stride=3), Interpolate(stride=3), Interleave(stride=3), Merge(stride=3)):
        assert strategy.move(now).kept == (0, 3, 6, 9, 11)  # type: ignore[union-attr]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"stride": 0}, "stride must be an integer >= 1, got 0"),
        ({"stride": 2.0}, "stride must be an integer >= 1, got 2.0"),
        ({"full_start": -1}, "full_start must be an integer >= 0, got -1"),
        ({"full_end": True}, "full_end must be an integer >= 0, got True"),
        (
            {"until": "boundary"},
            "until must be 'switch' or 'end', a number of steps .* got 'boundary'",
        ),
        (
            {"until": 0},
            "until must be 'switch' or 'end', a number of steps .* got 0",
        ),
        ({"until": True}, "until must be .* got True"),
        ({"positions": "real"}, "positions must be 'true' or 'contiguous', got 'real'"),
    ],
)
@pytest.mark.parametrize("name", ["own-noise", "interpolate", "interleave", "merge"])
def test_bad_options(name: str, options: dict[str, Any], message: str) -> None:
    with pytest.raises(OptionError, match=f"strategy '{name}': {message}"):
        resolve_strategy(name, options)


def test_an_option_that_there_is_not() -> None:
    with pytest.raises(
        OptionError,
        match=r"strategy 'interleave' does not fit strides=3.*Its options: stride=2, full_start=0, .*stride'",
    ):
        resolve_strategy("interleave", {"strides": 3})


def test_a_strategy_says_its_options() -> None:
    assert str(Merge()) == "merge"
    assert str(Merge(stride=4, until=1)) == "merge:stride=4,until=1"
    assert str(resolve_strategy("interleave:positions=contiguous", {})) == "interleave:positions=contiguous"
