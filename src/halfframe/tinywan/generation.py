"""One way to call TinyWan on either host, with the sizes and the schedule that it was trained for."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from halfframe.compare.generators import check_seeds
from halfframe.errors import OptionError
from halfframe.tinywan.clips import parse_prompt
from halfframe.tinywan.model import SHIFT, SIDE
from halfframe.tinywan.text import TEXT_LEN

__all__ = ["GUIDE_SCALE", "NUM_FRAMES", "generate"]

NUM_FRAMES = 81
GUIDE_SCALE = (3.0, 4.0)
"""Of the low-noise and of the high-noise expert, as upstream's for T2V-A14B."""


def generate(
    pipe: Any,
    prompts: Sequence[str],
    seeds: Sequence[int],
    *,
    num_steps: int = 20,
    guide_scale: tuple[float, float] = GUIDE_SCALE,
    num_frames: int = NUM_FRAMES,
) -> Tensor:
    """Clips of `prompts`, one per prompt and seed.

    Args:
        pipe: what `load_diffusers` or `load_wan` returned.
        prompts: in TinyWan's language, see `halfframe.tinywan.parse_prompt`.
        seeds: of each clip's noise, drawn on the CPU.
        num_steps: solver steps (UniPC, shift 12).
        guide_scale: of classifier-free guidance, of the low-noise and of the high-noise expert.
        num_frames: video frames, 4n+1; 81 in training.

    Returns:
        ``(len(prompts), 3, num_frames, SIDE, SIDE)``, values 0..1.

    Raises:
        OptionError: a prompt outside the vocabulary, or unusable numbers.
    """
    if isinstance(prompts, str) or not 0 < len(prompts) == len(seeds):
        raise OptionError(f"prompts={prompts!r}, seeds={seeds!r}; needed: two lists of one length, one clip or more.")
    check_seeds(seeds)
    if num_frames < 1 or num_frames % 4 != 1 or min(guide_scale) < 1:
        raise OptionError(f"num_frames={num_frames}, guide_scale={guide_scale}; needed: 4n+1 frames, scales from 1 on.")
    for prompt in prompts:
        parse_prompt(prompt)
    if hasattr(pipe, "generate"):
        clips = [
            pipe.generate(
                prompt,
                size=(SIDE, SIDE),
                frame_num=num_frames,
                shift=SHIFT,
                sampling_steps=num_steps,
                guide_scale=guide_scale,
                seed=seed,
                offload_model=False,
            )
            for prompt, seed in zip(prompts, seeds, strict=True)
        ]
        return (torch.stack(clips) + 1) / 2
    video: Tensor = pipe(
        list(prompts),
        height=SIDE,
        width=SIDE,
        num_frames=num_frames,
        num_inference_steps=num_steps,
        guidance_scale=guide_scale[1],
        guidance_scale_2=guide_scale[0],
        generator=[torch.Generator().manual_seed(seed) for seed in seeds],
        max_sequence_length=TEXT_LEN,
        output_type="pt",
    ).frames
    return video.transpose(1, 2)
