"""``crossfade``: a skipped frame is a blend of the kept frames on either side."""

from __future__ import annotations

import torch
from torch import Tensor

from halfframe import OptionError
from halfframe.sampling.frames import TIME_DIM, require_kept

__all__ = ["crossfade"]


def crossfade(latents: Tensor, num_frames: int, *, weight: float = 0.5) -> Tensor:
    """Kept frames at even positions, ``(1 - weight) * earlier + weight * later`` between them, the last one held.

    Shapes: ``(..., ceil(num_frames / 2), H, W)`` -> ``(..., num_frames, H, W)``.

    Raises:
        OptionError: `weight` is not within 0..1.
    """
    if not 0 <= weight <= 1:
        raise OptionError(f"crossfade: weight must be in 0..1, got {weight!r}; 0 is the earlier frame, 1 the later.")
    require_kept(latents, num_frames)
    later = torch.cat([latents[..., 1:, :, :], latents[..., -1:, :, :]], dim=TIME_DIM)
    between = latents + weight * (later - latents)
    pairs = torch.stack([latents, between], dim=TIME_DIM)  # (..., kept, 2, H, W)
    return pairs.flatten(TIME_DIM - 1, TIME_DIM).narrow(TIME_DIM, 0, num_frames).contiguous()
