"""TinyWan for halfframe's comparisons and its tuning."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from halfframe.compare import Generate
from halfframe.sampling.frames import require_whole_groups
from halfframe_tinywan.generation import first_frame, generate, settings
from halfframe_tinywan.models import load_diffusers, load_wan
from halfframe_tinywan.world import SIDE, VIDEO_FRAMES

__all__ = ["tinywan_generate"]

_UNSEEN = 1_000_000  # training drew its worlds from the seeds below


def tinywan_generate(
    kind: str = "t2v", host: str = "diffusers", *, video_frames: int = VIDEO_FRAMES, shift: float | None = None
) -> Generate:
    """``(prompt, seed, steps) -> clip`` of a `kind` on a `host`, loaded, with the guidance that it was trained for.

    Image-to-video starts from `first_frame` of a world of the prompt, drawn by the seed; training saw no such world.

    Args:
        kind: ``"t2v"``, ``"lora"`` or ``"i2v"``, see `load_diffusers`.
        host: ``"diffusers"`` or ``"wan"``.
        video_frames: 4n+1; 81 in training.
        shift: of the schedule; None for the one of training.

    Raises:
        OptionError: an unknown kind, or another number of frames.
        HalfframeError: the host is missing.
    """
    require_whole_groups(video_frames)
    pipe: Any = load_wan(kind) if host == "wan" else load_diffusers(kind)
    given = {**settings(kind), "video_frames": video_frames}
    given |= {} if shift is None else {"shift": shift}

    def call(prompt: str, seed: int, steps: int) -> Tensor:
        images: dict[str, Any] = {"images": [first_frame(prompt, _UNSEEN + seed)]} if kind == "i2v" else {}
        clips = generate(pipe, [prompt], [seed], **{**given, "steps": steps}, **images)
        return clips[0].permute(1, 2, 3, 0).clamp(0, 1)

    low, high = given["guidance"]
    facts = {
        "pipeline": f"{host} {type(pipe).__name__}",
        "weights": "TinyWan's, a toy" + (", with its LoRA pair" if kind == "lora" else ""),
        "video": f"{video_frames} frames {SIDE}x{SIDE}",
        "dtype": "float32",
        "scheduler": "UniPC",
        "shift": given["shift"],
        "guidance": f"{high:g} high noise, {low:g} low noise",
    }
    return Generate(pipe, call, torch.device("cpu"), facts)
