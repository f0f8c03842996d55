"""Arithmetic of the time axis: pure functions, nothing of pipelines or strategies.

*Video frames* are what a user asks for (4n+1 of them); *latent frames* are the time axis of the latents. Tensors carry
time at dim -3, ``(..., F, H, W)``. Every function here keeps dtype and device, and lets gradients flow.
"""

from __future__ import annotations

import operator
from collections.abc import Sequence
from itertools import pairwise

import torch
from torch import Tensor

from halfframe.errors import HalfframeError, OptionError, StrategyError

__all__ = [
    "TIME_DIM",
    "check_indices",
    "kept_count",
    "kept_indices",
    "latent_frame_count",
    "neighbours_share",
    "put",
    "require_kept",
    "require_whole_groups",
    "same",
    "sequence_length",
    "take",
    "video_frame_count",
]

TIME_DIM = -3


def latent_frame_count(video_frames: int, temporal_stride: int = 4) -> int:
    """Latent frames of a clip, ``(video_frames - 1) // temporal_stride + 1`` (81 -> 21), as Wan's VAE counts."""
    _require_positive("video_frames", video_frames)
    return (video_frames - 1) // temporal_stride + 1


def video_frame_count(latent_frames: int, temporal_stride: int = 4) -> int:
    """Video frames that decode from a clip's latent frames, ``(latent_frames - 1) * stride + 1`` (21 -> 81)."""
    _require_positive("latent_frames", latent_frames)
    return (latent_frames - 1) * temporal_stride + 1


def require_whole_groups(video_frames: int) -> None:
    """Refuse a number of video frames that is not 4n+1, which hosts would round without a word."""
    if video_frames < 1 or video_frames % 4 != 1:
        below = max(1, (video_frames - 1) // 4 * 4 + 1)
        raise OptionError(f"{video_frames} video frames is not 4n+1; use {below} or {below + 4}.")


def kept_count(num_frames: int) -> int:
    """How many of `num_frames` frames are kept when every other one is skipped: ``ceil(num_frames / 2)``.

    Holds for video frames and latent frames alike: 49 -> 25, 48 -> 24; 13 -> 7, 12 -> 6.
    """
    _require_positive("num_frames", num_frames)
    return (num_frames + 1) // 2


def kept_indices(num_frames: int) -> tuple[int, ...]:
    """Positions of the kept frames: 0, 2, 4, ... The first frame is always kept (12 -> 0, 2, ..., 10)."""
    _require_positive("num_frames", num_frames)
    return tuple(range(0, num_frames, 2))


def sequence_length(latent_frames: int, tokens_per_frame: int, group_size: int = 1) -> int:
    """Tokens of `latent_frames` frames, padded up to a multiple of the sequence-parallel `group_size`."""
    tokens = latent_frames * tokens_per_frame
    return -(-tokens // group_size) * group_size


def check_indices(indices: Sequence[int], num_frames: int) -> tuple[int, ...]:
    """Return `indices` as a tuple if they are strictly increasing positions in ``range(num_frames)``.

    Raises:
        StrategyError: if they are empty, repeated, out of order or out of range.
    """
    try:
        result = tuple(operator.index(index) for index in indices)
    except TypeError as error:
        raise StrategyError(
            f"{indices!r} does not select frames of a clip of {num_frames} latent frames; needed: some integers."
        ) from error
    increasing = all(a < b for a, b in pairwise(result))
    if not result or not increasing or result[0] < 0 or result[-1] >= num_frames:
        raise StrategyError(
            f"frame indices {list(result)} do not select frames of a clip of {num_frames} latent frames; "
            f"needed: at least one, strictly increasing, each in 0..{num_frames - 1}."
        )
    return result


def same(a: Tensor, b: Tensor) -> bool:
    """Whether two tensors of one shape hold the same values, NaN included."""
    return bool(((a == b) | (a.isnan() & b.isnan())).all())


def neighbours_share(latents: Tensor) -> float:
    """Correlation of each frame of latents ``(..., F, H, W)`` with the next, -1..1."""
    x = latents.detach().float().transpose(TIME_DIM, 0).flatten(1)
    earlier, later = x[:-1], x[1:]
    return float((earlier * later).sum() / (earlier.norm() * later.norm()).clamp(min=1e-12)) if len(x) > 1 else 0.0


def take(latents: Tensor, indices: Sequence[int]) -> Tensor:
    """The frames at `indices`, in that order, repeats allowed: ``(..., F, H, W)`` -> ``(..., len(indices), H, W)``.

    Raises:
        HalfframeError: if one of `indices` is no frame of `latents`.
    """
    _require_time_axis(latents)
    for index in sorted(set(indices)):
        check_indices([index], latents.shape[TIME_DIM])
    return latents.index_select(TIME_DIM, torch.tensor(tuple(indices), dtype=torch.long, device=latents.device))


def put(latents: Tensor, indices: Sequence[int], frames: Tensor) -> Tensor:
    """A copy of `latents` ``(..., F, H, W)`` whose frames at `indices` are `frames` ``(..., n, H, W)``.

    Raises:
        HalfframeError: if `indices` is no selection of `latents`' frames, or `frames` has not one for each.
    """
    _require_time_axis(latents)
    indices = check_indices(indices, latents.shape[TIME_DIM])
    if frames.shape[TIME_DIM] != len(indices):
        raise HalfframeError(
            f"put got {frames.shape[TIME_DIM]} frames, shape {tuple(frames.shape)}, for {len(indices)} positions; give "
            "one frame per position, time at dim -3."
        )
    index = torch.tensor(indices, dtype=torch.long, device=latents.device)
    return latents.index_copy(TIME_DIM, index, frames.to(latents.dtype)).contiguous()


def require_kept(latents: Tensor, num_frames: int) -> None:
    """Refuse latents that are not the kept half, ``(..., ceil(num_frames / 2), H, W)``, of a clip of `num_frames`."""
    _require_time_axis(latents)
    seen, needed = latents.shape[TIME_DIM], kept_count(num_frames)
    if seen != needed:
        raise HalfframeError(
            f"{num_frames} frames are expanded from {needed} kept ones, but latents of shape {tuple(latents.shape)} "
            f"have {seen} at dim -3; pass the kept frames, or num_frames={2 * seen - 1} or {2 * seen}."
        )


def _require_time_axis(latents: Tensor) -> None:
    if latents.ndim < 3:
        raise HalfframeError(
            f"latents of shape {tuple(latents.shape)} have no time axis; needed: (..., F, H, W), time at dim -3."
        )


def _require_positive(name: str, value: int) -> None:
    if value < 1:
        raise HalfframeError(f"{name} is {value}; a clip has at least 1 frame.")
