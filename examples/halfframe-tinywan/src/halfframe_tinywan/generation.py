"""One way to call TinyWan on either host, with the sizes and the schedule that it was trained for."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from halfframe.errors import OptionError
from halfframe_tinywan.language import TEXT_LEN, parse_prompt
from halfframe_tinywan.models import GUIDANCE, SHIFT
from halfframe_tinywan.world import SIDE, VIDEO_FRAMES

__all__ = ["generate"]


def generate(
    pipe: Any,
    prompts: Sequence[str],
    seeds: Sequence[int],
    *,
    steps: int = 20,
    guidance: tuple[float, float] = GUIDANCE,
    video_frames: int = VIDEO_FRAMES,
) -> Tensor:
    """Clips of `prompts`, one per prompt and seed, ``(len(prompts), 3, video_frames, SIDE, SIDE)``, values 0..1.

    Args:
        pipe: what `load_diffusers` or `load_wan` returned.
        prompts: in TinyWan's language, see `parse_prompt`.
        seeds: of each clip's noise, drawn on the CPU.
        steps: of the scheduler (UniPC, shift 12).
        guidance: scales of the low-noise and of the high-noise expert; 1 makes no unconditional pass.
        video_frames: 4n+1; 81 in training.

    Raises:
        OptionError: a prompt outside the language, or unusable numbers.
    """
    if isinstance(prompts, str) or not 0 < len(prompts) == len(seeds) or any(seed < 0 for seed in seeds):
        raise OptionError(
            f"prompts={prompts!r}, seeds={seeds!r}; needed: two lists of one length, one clip or more, seeds from 0."
        )
    if video_frames < 1 or video_frames % 4 != 1 or steps < 1 or min(guidance) < 1:
        raise OptionError(
            f"video_frames={video_frames}, steps={steps}, guidance={guidance}; needed: 4n+1 frames, 1 step or more, "
            "scales from 1."
        )
    for prompt in prompts:
        parse_prompt(prompt)
    if hasattr(pipe, "generate"):
        clips = [
            pipe.generate(
                prompt,
                size=(SIDE, SIDE),
                frame_num=video_frames,
                shift=SHIFT,
                sampling_steps=steps,
                guide_scale=guidance,
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
        num_frames=video_frames,
        num_inference_steps=steps,
        guidance_scale=guidance[1],
        guidance_scale_2=guidance[0],
        generator=[torch.Generator().manual_seed(seed) for seed in seeds],
        max_sequence_length=TEXT_LEN,
        output_type="pt",
    ).frames
    return video.transpose(1, 2)
