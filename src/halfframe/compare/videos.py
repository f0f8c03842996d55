"""Videos in and out: what pipelines return and video files, to and from float arrays ``(F, H, W, 3)`` in 0..1."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from halfframe.compare.extras import require
from halfframe.compare.metrics import Video, check_video
from halfframe.errors import HalfframeError

__all__ = ["FPS", "as_video", "from_diffusers", "from_official", "read_video", "to_bytes", "write_video"]

FPS = 16
"""Frames per second of Wan2.2 A14B's clips."""


def as_video(output: Any) -> Video:
    """What a pipeline or a user's function returned, as a float32 array ``(F, H, W, 3)`` in 0..1.

    Taken: the official pipelines' tensor ``(3, F, H, W)`` in -1..1; the output of a diffusers pipeline; an array or
    tensor ``(F, H, W, 3)``, floating in 0..1 or bytes.

    Raises:
        HalfframeError: none of these.
    """
    if hasattr(output, "frames"):
        return from_diffusers(output)
    if isinstance(output, Tensor) and output.ndim == 4 and output.shape[0] == 3 and output.shape[3] != 3:
        return from_official(output)
    if isinstance(output, Tensor):
        output = output.detach().cpu()
        output = (output if output.dtype == torch.uint8 else output.float()).numpy()
    if not isinstance(output, np.ndarray):
        raise HalfframeError(
            f"a {type(output).__name__} is not a video; needed: the official pipelines' tensor (3, F, H, W) in -1..1, "
            "a diffusers pipeline's output, or an array (F, H, W, 3) in 0..1 or of bytes. On several GPUs, only the "
            "first rank gets the video."
        )
    if output.dtype == np.uint8:
        output = output.astype(np.float32) / 255
    return check_video(output.astype(np.float32, copy=False))


def from_official(video: Tensor) -> Video:
    """The official pipelines' ``(3, F, H, W)`` in -1..1 -> ``(F, H, W, 3)`` in 0..1; clipped, as upstream does."""
    if video.ndim != 4 or video.shape[0] != 3:
        raise HalfframeError(f"a tensor of shape {tuple(video.shape)} is not a video; needed: (3, F, H, W).")
    array = video.detach().float().cpu().permute(1, 2, 3, 0).clamp(-1, 1).add(1).div(2)
    return check_video(np.ascontiguousarray(array.numpy()))


def from_diffusers(output: Any) -> Video:
    """The first clip of a diffusers pipeline's output, or of its ``frames``, for output types np, pt and pil."""
    frames = getattr(output, "frames", output)
    clip = frames[0]
    if isinstance(clip, list | tuple):
        return as_video(np.stack([np.asarray(image) for image in clip]))
    if isinstance(clip, Tensor) and clip.ndim == 4 and clip.shape[1] == 3:
        clip = clip.detach().permute(0, 2, 3, 1)
    if not isinstance(clip, Tensor | np.ndarray) or clip.ndim != 4 or clip.shape[3] != 3:
        raise HalfframeError(
            f"the pipeline's first clip is a {type(clip).__name__} of shape {tuple(getattr(clip, 'shape', ()))}; "
            "needed: decoded frames. Use output_type 'np', 'pt' or 'pil', not 'latent'."
        )
    return as_video(clip)


def to_bytes(video: npt.NDArray[Any]) -> npt.NDArray[np.uint8]:
    """``(F, H, W, 3)`` in 0..1 -> bytes, rounded to nearest; bytes stay what they are."""
    if video.dtype == np.uint8:
        return video
    return np.stack([np.rint(np.clip(frame, 0, 1) * 255).astype(np.uint8) for frame in video])


def read_video(path: str | Path) -> Video:
    """A video file as ``(F, H, W, 3)`` in 0..1.

    ``.npy`` and ``.pt`` hold what `as_video` takes; anything else goes to ffmpeg (mp4 and the like, which are lossy).

    Raises:
        HalfframeError: there is no such file, it cannot be decoded, or it holds no video.
    """
    path = Path(path)
    if not path.is_file():
        raise HalfframeError(f"there is no video file {str(path)!r}; give a .mp4, .npy or .pt file.")
    reader = require("imageio.v2", "read video files") if path.suffix not in (".npy", ".pt") else None
    try:
        if path.suffix == ".npy":
            content: Any = np.load(path, allow_pickle=False)
        elif path.suffix == ".pt":
            content = torch.load(path, map_location="cpu", weights_only=True)
        else:
            assert reader is not None
            with reader.get_reader(path, format="FFMPEG") as frames:
                content = np.stack([np.asarray(frame) for frame in frames])
    except Exception as error:
        reason = next(iter(str(error).splitlines()), "")  # ffmpeg's goes on for pages
        raise HalfframeError(
            f"{str(path)!r} cannot be read as a video: {type(error).__name__}: {reason}; give a .mp4, .npy or .pt file."
        ) from error
    try:
        return as_video(content)
    except HalfframeError as error:
        raise HalfframeError(f"{str(path)!r}: {error}") from error


def write_video(path: str | Path, video: npt.NDArray[Any], fps: float = FPS) -> Path:
    """Write ``(F, H, W, 3)``, floating in 0..1 or bytes: ``.npy`` and ``.pt`` as they are, else H.264 by ffmpeg.

    H.264 wants even sizes; an odd one is made even by repeating the last row or column. It is lossy (crf 10).
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.suffix == ".npy":
        np.save(path, video)
        return path
    if path.suffix == ".pt":
        torch.save(torch.from_numpy(np.ascontiguousarray(video)), path)
        return path
    frames = to_bytes(video)
    frames = np.pad(frames, ((0, 0), (0, frames.shape[1] % 2), (0, frames.shape[2] % 2), (0, 0)), mode="edge")
    imageio = require("imageio.v2", "write video files")
    require("imageio_ffmpeg", "write video files")
    with imageio.get_writer(
        path,
        format="FFMPEG",
        fps=fps,
        codec="libx264",
        pixelformat="yuv420p",
        quality=None,
        macro_block_size=2,
        output_params=["-crf", "10"],
        ffmpeg_log_level="error",
    ) as writer:
        for frame in frames:
            writer.append_data(frame)
    return path
