"""``self-duplicate``: every kept frame is repeated (the source's basic completion)."""

from __future__ import annotations

import torch
from einops import repeat
from torch import Tensor

from halfframe.frames import TIME_DIM, require_kept

__all__ = ["self_duplicate"]


def self_duplicate(latents: Tensor, num_frames: int) -> Tensor:
    """F1, F1, F2, F2, ...: repeat each frame and cut to length; source: half-frame generation, basic completion.

    The source never repeats the last frame, which loses one where `num_frames` is even; cutting to length does not.

    Shapes: ``(..., ceil(num_frames / 2), H, W)`` -> ``(..., num_frames, H, W)``.
    """
    require_kept(latents, num_frames)
    pairs = repeat(latents, "... f h w -> ... (f r) h w", r=2)
    return pairs.narrow(TIME_DIM, 0, num_frames).clone(memory_format=torch.contiguous_format)
