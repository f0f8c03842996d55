"""The arithmetic of the time axis, against the source's table, brute force, and autograd."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from halfframe import HalfframeError
from halfframe.sampling import frames

DTYPES = (torch.float16, torch.bfloat16, torch.float32, torch.float64)


def numbered(num_frames: int, leading: tuple[int, ...] = (), dtype: torch.dtype = torch.float32) -> torch.Tensor:
    """A clip whose frame i holds the number i everywhere, plus a distinct half per leading position (exact in bf16)."""
    clip = torch.arange(num_frames, dtype=dtype).reshape(num_frames, 1, 1).expand(num_frames, 2, 3)
    return clip.expand(*leading, num_frames, 2, 3).clone()


@st.composite
def selections(draw: st.DrawFn) -> tuple[int, tuple[int, ...]]:
    """A clip length and some of its positions, increasing."""
    num_frames = draw(st.integers(1, 40))
    return num_frames, tuple(sorted(draw(st.sets(st.integers(0, num_frames - 1), min_size=1))))


# Counting.


@pytest.mark.parametrize(("frame_count", "kept"), [(49, 25), (81, 41), (121, 61), (48, 24), (80, 40)])
def test_the_sources_table_of_video_frames(frame_count: int, kept: int) -> None:
    assert frames.kept_count(frame_count) == kept


@pytest.mark.parametrize(("latent", "kept"), [(13, 7), (21, 11), (31, 16), (12, 6), (1, 1), (2, 1)])
def test_kept_latent_frames(latent: int, kept: int) -> None:
    assert frames.kept_count(latent) == kept
    assert len(frames.kept_indices(latent)) == kept


@pytest.mark.parametrize(("video", "latent"), [(1, 1), (49, 13), (81, 21), (121, 31)])
def test_latent_frames_of_a_clip(video: int, latent: int) -> None:
    assert frames.latent_frame_count(video) == latent
    assert frames.video_frame_count(latent) == video


@given(st.integers(0, 10_000))
def test_halving_video_frames_and_halving_latent_frames_agree(n: int) -> None:
    video = 4 * n + 1
    halved_then_encoded = frames.latent_frame_count(frames.kept_count(video))
    encoded_then_halved = frames.kept_count(frames.latent_frame_count(video))
    assert halved_then_encoded == encoded_then_halved


@given(st.integers(1, 10_000), st.integers(1, 16))
def test_encoding_after_decoding_returns_the_same_count(latent: int, stride: int) -> None:
    assert frames.latent_frame_count(frames.video_frame_count(latent, stride), stride) == latent


@given(st.integers(1, 500))
def test_kept_indices_are_every_other_position_and_begin_with_the_first(num_frames: int) -> None:
    expected = [position for position in range(num_frames) if position % 2 == 0]
    assert list(frames.kept_indices(num_frames)) == expected


@given(st.integers(1, 40), st.integers(1, 5_000), st.integers(1, 16))
def test_sequence_length_is_the_smallest_multiple_of_the_group_that_holds_the_tokens(
    latent: int, tokens_per_frame: int, group: int
) -> None:
    length = frames.sequence_length(latent, tokens_per_frame, group)
    tokens = latent * tokens_per_frame
    assert length % group == 0
    assert length - group < tokens <= length


@given(st.integers(1, 40), st.integers(1, 90), st.integers(1, 160), st.integers(1, 8))
def test_sequence_length_is_upstreams_own_figure(latent: int, height: int, width: int, group: int) -> None:
    # Upstream: math.ceil(h * w / 4 * frames / sp_size) * sp_size, in floats that are exact at these sizes for 2 x 2
    # patches that divide the latents.
    height, width = 2 * height, 2 * width
    upstream = -int(-(height * width) / 4 * latent // group) * group
    assert frames.sequence_length(latent, (height // 2) * (width // 2), group) == upstream


@pytest.mark.parametrize("function", [frames.latent_frame_count, frames.video_frame_count, frames.kept_count])
@pytest.mark.parametrize("count", [0, -1])
def test_a_clip_without_frames_is_refused(function: object, count: int) -> None:
    with pytest.raises(HalfframeError, match=rf"frames is {count}; a clip has at least 1 frame"):
        function(count)  # type: ignore[operator]


# Selecting.


@given(selections())
def test_check_indices_returns_a_selection_unchanged(selection: tuple[int, tuple[int, ...]]) -> None:
    num_frames, kept = selection
    assert frames.check_indices(list(kept), num_frames) == kept


@pytest.mark.parametrize("indices", [(), (1, 1), (2, 1), (-1, 0), (0, 5)])
def test_check_indices_refuses_what_selects_no_frames(indices: tuple[int, ...]) -> None:
    with pytest.raises(
        HalfframeError, match=r"do not select frames of a clip of 5 latent frames; needed: .* in 0\.\.4"
    ):
        frames.check_indices(indices, 5)


def test_check_indices_names_what_it_was_given() -> None:
    with pytest.raises(HalfframeError, match=r"frame indices \[3, 2\]"):
        frames.check_indices(torch.tensor([3, 2]), 5)  # type: ignore[arg-type]


# Tensors.


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("leading", [(), (3,), (2, 3), (2, 1, 3)])
@given(selection=selections())
def test_take_and_put_agree_with_indexing(
    leading: tuple[int, ...], dtype: torch.dtype, selection: tuple[int, tuple[int, ...]]
) -> None:
    num_frames, kept = selection
    clip = torch.randn(*leading, num_frames, 2, 3).to(dtype)

    taken = frames.take(clip, kept)
    assert torch.equal(taken, clip[..., list(kept), :, :])

    other = torch.randn(*leading, len(kept), 2, 3).to(dtype)
    written = frames.put(clip, kept, other)
    for position in range(num_frames):
        is_kept = position in kept
        expected = other[..., kept.index(position), :, :] if is_kept else clip[..., position, :, :]
        assert torch.equal(written[..., position, :, :], expected)

    for result in (taken, written):
        assert result.dtype == dtype
        assert result.is_contiguous()


def test_put_leaves_its_input_alone_and_casts_what_it_writes() -> None:
    clip = numbered(4)
    result = frames.put(clip, [1], torch.full((1, 2, 3), 9.0, dtype=torch.float64))
    assert torch.equal(clip, numbered(4))
    assert result.dtype == torch.float32
    assert result[:, 0, 0].tolist() == [0, 9, 2, 3]


def test_results_are_contiguous_for_strided_inputs_too() -> None:
    strided = numbered(5, (2,)).transpose(-1, -2)
    assert not strided.is_contiguous()
    half = frames.take(strided, [0, 2, 4])
    assert half.is_contiguous()
    assert frames.put(strided, [0], half[..., :1, :, :]).is_contiguous()


@pytest.mark.parametrize(
    "function",
    [
        lambda clip, part: frames.take(clip, (0, 2, 3)),
        lambda clip, part: frames.put(clip, (1, 3), part),
    ],
    ids=["take", "put"],
)
def test_gradients_flow(function: object) -> None:
    clip = torch.randn(2, 5, 1, 2, dtype=torch.float64, requires_grad=True)
    part = torch.randn(2, 2, 1, 2, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(function, (clip, part))


def test_tensors_without_a_time_axis_are_refused() -> None:
    flat = torch.zeros(4, 5)
    message = r"latents of shape \(4, 5\) have no time axis; needed: \(\.\.\., F, H, W\)"
    with pytest.raises(HalfframeError, match=message):
        frames.take(flat, [0])
    with pytest.raises(HalfframeError, match=message):
        frames.put(flat, [0], flat)
    with pytest.raises(HalfframeError, match=message):
        frames.require_kept(flat, 2)


@given(st.integers(1, 100), st.integers(1, 60))
def test_require_kept_accepts_the_kept_half_and_nothing_else(num_frames: int, given_frames: int) -> None:
    latents = torch.zeros(given_frames, 1, 1)
    if given_frames == (num_frames + 1) // 2:
        frames.require_kept(latents, num_frames)
        return
    with pytest.raises(HalfframeError, match=f"{num_frames} frames are expanded from") as caught:
        frames.require_kept(latents, num_frames)
    # What the message proposes must itself be accepted.
    assert f"num_frames={2 * given_frames - 1} or {2 * given_frames}." in str(caught.value)
    frames.require_kept(latents, 2 * given_frames - 1)
    frames.require_kept(latents, 2 * given_frames)


@pytest.mark.parametrize("selection", [3, [None], "ab", (0.5, 1.7), [1.0]])
def test_what_is_no_sequence_of_integers_is_refused(selection: Any) -> None:
    with pytest.raises(
        HalfframeError, match="does not select frames of a clip of 5 latent frames; needed: some integers"
    ):
        frames.check_indices(selection, 5)


def test_take_and_put_refuse_frames_that_are_not_there() -> None:
    clip = torch.zeros(2, 5, 1, 1)
    with pytest.raises(HalfframeError, match=r"frame indices \[5\] do not select frames of a clip of 5"):
        frames.take(clip, [0, 5])
    with pytest.raises(HalfframeError, match=r"put got 1 frames, shape \(2, 1, 1, 1\), for 2 positions"):
        frames.put(clip, [0, 2], clip[:, :1])
