"""How far one video is from another, and how evenly one video moves: pure functions of arrays.

A video is a float array ``(F, H, W, 3)`` in 0..1, F video frames. Everything here refers to that range: the largest
possible squared error is 1, and a mean squared error of 0.012 is a PSNR of 19.2 dB.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise
from typing import Any

import numpy as np
import numpy.typing as npt
from torch import Tensor

from halfframe.compare.extras import require
from halfframe.errors import HalfframeError

__all__ = [
    "SSIM_WINDOW",
    "Video",
    "check_video",
    "latent_duplication_ratio",
    "mean",
    "motion",
    "motion_ratio",
    "mse",
    "mse_per_frame",
    "psnr",
    "ssim_per_frame",
    "video_duplication_ratio",
]

Video = npt.NDArray[np.floating[Any]]
"""``(F, H, W, 3)``, floating point, 0..1."""

SSIM_WINDOW = 11
"""Side in pixels of the Gaussian window of SSIM: sigma 1.5, cut off at 3.5 sigma."""


def check_video(video: Any, name: str = "video") -> Video:
    """Return `video` if it is a float array ``(F, H, W, 3)`` of finite values in 0..1.

    Raises:
        HalfframeError: it is not; the message names it.
    """
    if not isinstance(video, np.ndarray) or video.ndim != 4 or video.shape[3] != 3 or 0 in video.shape:
        seen = f"an array of shape {video.shape}" if isinstance(video, np.ndarray) else f"a {type(video).__name__}"
        raise HalfframeError(
            f"{name} is {seen}; needed: a float array (F, H, W, 3) in 0..1. "
            "Convert what a pipeline returned with halfframe.compare.as_video."
        )
    if not np.issubdtype(video.dtype, np.floating):
        raise HalfframeError(f"{name} has dtype {video.dtype}; needed: floating point in 0..1. Divide bytes by 255.")
    low, high = float(video.min()), float(video.max())
    if not (low >= -1e-6 and high <= 1 + 1e-6):  # also false for NaN
        raise HalfframeError(
            f"{name} has values from {low:g} to {high:g}; needed: finite values in 0..1. "
            "Convert the official pipeline's -1..1 with halfframe.compare.as_video."
        )
    return video


def mse_per_frame(video: Video, baseline: Video) -> tuple[float, ...]:
    """Mean squared error of each frame, data range 1: F values in 0..1."""
    _check_pair(video, baseline)
    return tuple(float(np.mean(np.square(a - b), dtype=np.float64)) for a, b in zip(video, baseline, strict=True))


def mse(video: Video, baseline: Video) -> float:
    """Mean squared error of the whole clip, data range 1."""
    return mean(mse_per_frame(video, baseline))


def psnr(mean_squared_error: float) -> float:
    """``-10 log10(MSE)`` in dB, the peak being 1: 0.01 -> 20, 0.012 -> 19.2; infinite for 0."""
    return math.inf if mean_squared_error == 0 else -10 * math.log10(mean_squared_error)


def ssim_per_frame(video: Video, baseline: Video) -> tuple[float, ...]:
    """Windowed SSIM (Wang et al. 2004) of each frame, by scikit-image's ``structural_similarity``.

    Gaussian weights with sigma 1.5 (`SSIM_WINDOW` pixels), population covariance, data range 1, mean of the three
    channels.

    Raises:
        HalfframeError: the frames are smaller than the window, or scikit-image is not installed.
    """
    _check_pair(video, baseline)
    height, width = video.shape[1:3]
    if min(height, width) < SSIM_WINDOW:
        raise HalfframeError(
            f"frames of {width}x{height} are smaller than SSIM's window; needed: {SSIM_WINDOW}x{SSIM_WINDOW} or more."
        )
    similarity = require("skimage.metrics", "compute SSIM").structural_similarity

    def one(frame: Video, reference: Video) -> float:
        return float(
            similarity(
                frame,
                reference,
                channel_axis=-1,
                data_range=1.0,
                gaussian_weights=True,
                sigma=1.5,
                use_sample_covariance=False,
            )
        )

    with ThreadPoolExecutor() as pool:  # the filters within release the interpreter lock
        return tuple(pool.map(one, video, baseline))


def latent_duplication_ratio(latents: Tensor | npt.NDArray[Any]) -> float | None:
    """Mean ``|x[2k+1] - x[2k]|`` over mean ``|x[2k+2] - x[2k+1]|`` of latents ``(..., F, H, W)``.

    1 where every latent frame changes as much as its neighbours; 0 where every second one is a copy of the one before
    it. None below 3 latent frames, or where nothing changes between the pairs.
    """
    array = latents.detach().cpu().double().numpy() if isinstance(latents, Tensor) else np.asarray(latents, np.float64)
    if array.ndim < 3:
        raise HalfframeError(f"latents of shape {array.shape} have no time axis; needed: (..., F, H, W).")
    clip = np.moveaxis(array, -3, 0)
    return _odd_over_even([float(np.abs(b - a).mean()) for a, b in pairwise(clip)])


def video_duplication_ratio(video: Video, temporal_stride: int = 4) -> float | None:
    """`latent_duplication_ratio` seen in the decoded video: 1 = no judder, towards 0 = latent frames come in twos.

    Wan's VAE decodes latent frame 0 to one video frame and each later one to `temporal_stride` of them: latent frame
    i > 0 is the group of video frames ``stride (i - 1) + 1 .. stride i``, and ``stride i`` is the last of group i for
    i = 0 as well. The ratio is the mean absolute difference of the last frames of groups 2k and 2k + 1 (within pairs)
    over that of groups 2k + 1 and 2k + 2 (between pairs).

    Last frames are compared, not all adjacent ones, because the groups of a duplicated latent frame can show it in two
    ways: the second one stands still, or it steps back and plays the first one's motion again. In both, their last
    frames are equal. A decoder that smears a latent frame over many groups hides it, as one of random weights does.

    None with fewer than 3 groups, or where nothing changes between the pairs. Frames after the last whole group count
    for nothing.
    """
    check_video(video)
    return _odd_over_even([_change(a, b) for a, b in pairwise(video[::temporal_stride])])


def motion(video: Video) -> float:
    """Mean absolute difference of adjacent frames, 0..1; 0 for a single frame."""
    check_video(video)
    return mean(_change(a, b) for a, b in pairwise(video)) if len(video) > 1 else 0.0


def motion_ratio(video: Video, baseline: Video) -> float | None:
    """`motion` of the video over that of the baseline: 1 = as much; None if the baseline stands still."""
    _check_pair(video, baseline)
    reference = motion(baseline)
    return motion(video) / reference if reference else None


def _check_pair(video: Video, baseline: Video) -> None:
    check_video(video)
    check_video(baseline, "baseline")
    if video.shape != baseline.shape:
        raise HalfframeError(
            f"the video has shape {video.shape} and the baseline {baseline.shape} (F, H, W, 3); needed: the same. "
            "Compare clips of the same length and size."
        )


def _change(a: Video, b: Video) -> float:
    return float(np.mean(np.abs(b - a), dtype=np.float64))


def _odd_over_even(changes: list[float]) -> float | None:
    """Mean of changes 0, 2, 4, ... (within pairs) over mean of changes 1, 3, 5, ... (between pairs)."""
    within, between = changes[0::2], changes[1::2]
    return mean(within) / mean(between) if between and mean(between) > 0 else None


def mean(values: Iterable[float]) -> float:
    """Arithmetic mean of one value or more."""
    return float(np.mean(list(values)))
