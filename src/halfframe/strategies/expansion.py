"""``self-duplicate`` and ``previous-odd``: the source's scheme, and the strategy around a plain function.

The high-noise expert gets every other frame, as a shorter clip. At the switch, a function restores the full length.
"""

from __future__ import annotations

from typing import Literal, Protocol

import torch
from einops import repeat
from torch import Tensor

from halfframe.errors import one_of
from halfframe.sampling import frames
from halfframe.sampling.frame_map import FrameMap
from halfframe.sampling.strategy import Allocation, Move, Step, Strategy

__all__ = ["ExpandFunction", "Expansion", "Noise", "PreviousOdd", "SelfDuplicate", "previous_odd", "self_duplicate"]

Noise = Literal["full", "short"]


class ExpandFunction(Protocol):
    """The simplest strategy: ``(latents, num_frames) -> latents``, and keyword options if it has any.

    `latents` is ``(..., ceil(num_frames / 2), H, W)``; the result ``(..., num_frames, H, W)``, same dtype and device.
    """

    def __call__(self, latents: Tensor, num_frames: int, /) -> Tensor: ...


def self_duplicate(latents: Tensor, num_frames: int) -> Tensor:
    """F1, F1, F2, F2, ...: repeat each frame and cut to length; source: half-frame generation, basic completion.

    The source never repeats the last frame, which loses one where `num_frames` is even; cutting to length does not.

    Shapes: ``(..., ceil(num_frames / 2), H, W)`` -> ``(..., num_frames, H, W)``.
    """
    frames.require_kept(latents, num_frames)
    pairs = repeat(latents, "... f h w -> ... (f r) h w", r=2)
    return pairs.narrow(frames.TIME_DIM, 0, num_frames).clone(memory_format=torch.contiguous_format)


def previous_odd(latents: Tensor, num_frames: int) -> Tensor:
    """Kept frames go to the odd positions (1-based), each even one copies its predecessor; source: improved completion.

    Equal to `self_duplicate` in its result, as the source itself notes, and written without it.

    Shapes: ``(..., ceil(num_frames / 2), H, W)`` -> ``(..., num_frames, H, W)``.
    """
    frames.require_kept(latents, num_frames)
    shape = list(latents.shape)
    shape[frames.TIME_DIM] = num_frames
    clip = latents.new_empty(shape)
    odd, even = slice(0, None, 2), slice(1, None, 2)
    clip[..., odd, :, :] = latents
    clip[..., even, :, :] = clip[..., odd, :, :][..., : num_frames // 2, :, :]
    return clip


class Expansion(Strategy):
    """Every other frame for the high-noise expert; at the switch, ``expand(kept frames, F)``.

    Args:
        expand: ``(latents, num_frames) -> latents``, see `ExpandFunction`.
        name: the strategy's name, for reports and messages.
        noise: ``"full"`` draws the whole clip's noise as the host does and uses that of the kept frames, so that a
            seed gives the same composition as without halfframe; ``"short"`` draws noise for the kept frames only, as
            the source does.

    Raises:
        OptionError: an unknown `noise`.
    """

    def __init__(self, expand: ExpandFunction, name: str = "", noise: Noise = "full") -> None:
        one_of("noise", noise, Noise)
        self.name = name or str(getattr(expand, "__name__", type(expand).__name__))
        self.noise = noise
        self._expand = expand

    def __str__(self) -> str:
        options = {**getattr(self._expand, "options", {}), **({} if self.noise == "full" else {"noise": self.noise})}
        return self.name + (":" + ",".join(f"{key}={value}" for key, value in options.items()) if options else "")

    def allocate(self, allocation: Allocation) -> Tensor:
        """Noise in which skipped frames copy the kept frame before them; they stay copies until the switch."""
        num_frames = allocation.num_frames
        kept = frames.kept_indices(num_frames)
        mirrored = [position // 2 for position in range(num_frames)]
        if self.noise == "short":
            shape = list(allocation.shape)
            shape[frames.TIME_DIM] = len(kept)
            return frames.take(allocation.draw(tuple(shape)), mirrored)
        noise = allocation.draw(allocation.shape)
        carried = frames.take(frames.take(noise, kept), mirrored)
        own = allocation.conditioning_frames
        return frames.put(carried, own, frames.take(noise, own)) if own else carried

    def move(self, step: Step) -> Move:
        """Every other frame, from frame 0, for the high-noise expert; all frames for the low-noise expert."""
        if step.expert == "low":
            return None
        kept = sorted({*frames.kept_indices(step.num_frames), *step.conditioning_frames})
        return FrameMap.select(kept, step.num_frames, between="hold", positions="contiguous", label=self.name)

    def at_switch(self, latents: Tensor) -> Tensor:
        """``expand(kept frames, F)``."""
        num_frames = latents.shape[frames.TIME_DIM]
        return self._expand(frames.take(latents, frames.kept_indices(num_frames)), num_frames)


class SelfDuplicate(Expansion):
    """Computes every other frame as a shorter clip; repeats each at the expert switch. The source's basic completion.

    Args:
        noise: see `Expansion`.
    """

    def __init__(self, *, noise: Noise = "full") -> None:
        super().__init__(self_duplicate, "self-duplicate", noise)


class PreviousOdd(Expansion):
    """Like self-duplicate, but copies each odd frame to the even one after it. The source's improved completion.

    Args:
        noise: see `Expansion`.
    """

    def __init__(self, *, noise: Noise = "full") -> None:
        super().__init__(previous_odd, "previous-odd", noise)
