"""Every metric of one clip against its baseline, in one object."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field

from halfframe.compare.metrics import SSIM_WINDOW, Video, mean, motion_ratio, mse_per_frame, psnr, ssim_per_frame
from halfframe.compare.perceptual import load_lpips

__all__ = ["Quality", "quality"]


@dataclass(frozen=True, slots=True)
class Quality:
    """One video measured against its baseline.

    Attributes:
        mse: of the whole clip, data range 1.
        psnr_frames: dB per frame, infinite where identical.
        ssim_frames: per frame; None if absent.
        lpips_frames: per frame; None if absent.
        motion_ratio: see `motion_ratio`.
        absent: for each metric that is not there, why.
    """

    mse: float
    psnr_frames: tuple[float, ...]
    ssim_frames: tuple[float, ...] | None
    lpips_frames: tuple[float, ...] | None
    motion_ratio: float | None
    absent: Mapping[str, str] = field(default_factory=dict)

    @property
    def identical_frames(self) -> int:
        """Frames that equal the baseline's exactly; they have no finite PSNR."""
        return sum(math.isinf(value) for value in self.psnr_frames)

    @property
    def psnr(self) -> float:
        """Mean over the frames that differ, dB; infinite if none does."""
        finite = [value for value in self.psnr_frames if math.isfinite(value)]
        return mean(finite) if finite else math.inf

    @property
    def ssim(self) -> float | None:
        """Mean over the frames."""
        return None if self.ssim_frames is None else mean(self.ssim_frames)

    @property
    def lpips(self) -> float | None:
        """Mean over the frames."""
        return None if self.lpips_frames is None else mean(self.lpips_frames)


def quality(video: Video, baseline: Video) -> Quality:
    """Every metric of `video` against `baseline`, both ``(F, H, W, 3)`` in 0..1; what cannot be had is absent.

    Raises:
        HalfframeError: the two differ in shape, or are no videos.
    """
    errors = mse_per_frame(video, baseline)
    absent: dict[str, str] = {}
    ssim: tuple[float, ...] | None = None
    if min(video.shape[1:3]) >= SSIM_WINDOW:
        ssim = ssim_per_frame(video, baseline)
    else:
        absent["ssim"] = f"frames of {video.shape[2]}x{video.shape[1]} are smaller than its {SSIM_WINDOW}-pixel window"
    distance = load_lpips()
    lpips = None
    if isinstance(distance, str):
        absent["lpips"] = distance
    else:
        lpips = distance(video, baseline)
    return Quality(
        mse=mean(errors),
        psnr_frames=tuple(psnr(error) for error in errors),
        ssim_frames=ssim,
        lpips_frames=lpips,
        motion_ratio=motion_ratio(video, baseline),
        absent=absent,
    )
