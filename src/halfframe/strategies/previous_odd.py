"""``previous-odd``: every even position takes the odd one before it (the source's improved completion)."""

from __future__ import annotations

from torch import Tensor

from halfframe.frames import TIME_DIM, require_kept

__all__ = ["previous_odd"]


def previous_odd(latents: Tensor, num_frames: int) -> Tensor:
    """Kept frames go to the odd positions (1-based), each even one copies its predecessor; source: improved completion.

    Equal to `self_duplicate` in its result, as the source itself notes, and written without it.

    Shapes: ``(..., ceil(num_frames / 2), H, W)`` -> ``(..., num_frames, H, W)``.
    """
    require_kept(latents, num_frames)
    shape = list(latents.shape)
    shape[TIME_DIM] = num_frames
    clip = latents.new_empty(shape)
    odd, even = slice(0, None, 2), slice(1, None, 2)
    clip[..., odd, :, :] = latents
    clip[..., even, :, :] = clip[..., odd, :, :][..., : num_frames // 2, :, :]
    return clip
