"""One way to call TinyWan on either host, with the sizes and the schedule that it was trained for."""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from halfframe.errors import OptionError
from halfframe_tinywan.language import TEXT_LEN, parse_prompt
from halfframe_tinywan.models import GUIDANCE, I2V_GUIDANCE, I2V_SHIFT, LORA_SHIFT, LORA_STEPS, SHIFT
from halfframe_tinywan.world import SIDE, VIDEO_FRAMES, draw_world, render

__all__ = ["first_frame", "generate", "settings"]


def settings(kind: str) -> dict[str, Any]:
    """Steps, shift and guidance scales (low noise, high noise) that the weights of a `kind` were made for."""
    return {
        "t2v": {"steps": 20, "shift": SHIFT, "guidance": GUIDANCE},
        "lora": {"steps": LORA_STEPS, "shift": LORA_SHIFT, "guidance": (1.0, 1.0)},
        "i2v": {"steps": 20, "shift": I2V_SHIFT, "guidance": I2V_GUIDANCE},
    }[kind]


def first_frame(prompt: str, seed: int) -> Any:
    """A picture (PIL) of a world of `prompt`, for image-to-video; seeds from 1,000,000 were not trained on."""
    from PIL import Image

    frame = render([draw_world(parse_prompt(prompt), seed)], num_frames=1)[0, :, 0]
    return Image.fromarray(((frame + 1) * 127.5).round().byte().permute(1, 2, 0).numpy())


def generate(
    pipe: Any,
    prompts: Sequence[str],
    seeds: Sequence[int],
    *,
    steps: int = 20,
    guidance: tuple[float, float] = GUIDANCE,
    shift: float | None = None,
    images: Sequence[Any] | None = None,
    video_frames: int = VIDEO_FRAMES,
) -> Tensor:
    """Clips of `prompts`, one per prompt and seed, ``(len(prompts), 3, video_frames, SIDE, SIDE)``, values 0..1.

    ``generate(pipe, prompts, seeds, **settings(kind))`` runs what ``load_diffusers(kind)`` or ``load_wan(kind)`` gave
    as it was trained.

    Args:
        pipe: what `load_diffusers` or `load_wan` returned.
        prompts: in TinyWan's language, see `parse_prompt`.
        seeds: of each clip's noise, drawn on the CPU.
        steps: of the scheduler, UniPC.
        guidance: scales of the low-noise and of the high-noise expert; 1 makes no unconditional pass on diffusers.
        shift: of the schedule; without one, 12, or what the scheduler of a diffusers pipeline has.
        images: for image-to-video, each clip's first frame (PIL, SIDE x SIDE); see `first_frame`.
        video_frames: 4n+1; 81 in training.

    Raises:
        OptionError: a prompt outside the language, images for text-to-video or none for image-to-video, or unusable
            numbers.
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
    call = pipe.generate if hasattr(pipe, "generate") else type(pipe).__call__
    wants = not {"img", "image"}.isdisjoint(inspect.signature(call).parameters)
    if wants != (images is not None) or (images is not None and len(images) != len(prompts)):
        raise OptionError(
            f"{type(pipe).__name__} with {'no' if images is None else len(images)} images and {len(prompts)} prompts; "
            f"needed: {'one image for each prompt' if wants else 'no images, it is text-to-video'}."
        )
    if hasattr(pipe, "generate"):
        run = {
            "frame_num": video_frames,
            "shift": shift or SHIFT,
            "sampling_steps": steps,
            "guide_scale": guidance,
            "offload_model": False,
        }
        return _of_wan(pipe, prompts, seeds, images, run)
    if shift is not None and pipe.scheduler.config.flow_shift != shift:
        pipe.scheduler = type(pipe.scheduler).from_config(pipe.scheduler.config, flow_shift=shift)
    run = {
        "height": SIDE,
        "width": SIDE,
        "num_frames": video_frames,
        "num_inference_steps": steps,
        "guidance_scale": guidance[1],
        "guidance_scale_2": guidance[0],
        "max_sequence_length": TEXT_LEN,
        "output_type": "pt",
    }
    return _of_diffusers(pipe, prompts, seeds, images, run)


def _of_wan(
    pipe: Any, prompts: Sequence[str], seeds: Sequence[int], images: Sequence[Any] | None, run: dict[str, Any]
) -> Tensor:
    clips = []
    for number, (prompt, seed) in enumerate(zip(prompts, seeds, strict=True)):
        size = {"size": (SIDE, SIDE)} if images is None else {"img": images[number], "max_area": SIDE * SIDE}
        clips.append(pipe.generate(prompt, **size, seed=seed, **run))
    return (torch.stack(clips) + 1) / 2


def _of_diffusers(
    pipe: Any, prompts: Sequence[str], seeds: Sequence[int], images: Sequence[Any] | None, run: dict[str, Any]
) -> Tensor:
    # The pipeline takes one image a call.
    groups = [slice(0, len(prompts))] if images is None else [slice(n, n + 1) for n in range(len(prompts))]
    clips = []
    for group in groups:
        generators = [torch.Generator().manual_seed(seed) for seed in seeds[group]]
        image = {} if images is None else {"image": images[group][0]}
        clip = pipe(prompt=list(prompts[group]), generator=generators, **image, **run).frames
        clips.append(clip.transpose(1, 2))
    return torch.cat(clips)
