"""``generate(prompt, seed, steps)`` for the pipelines that halfframe serves, with the facts that a table must state."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch

from halfframe.errors import OptionError
from halfframe.sampling import frames

__all__ = ["Generate", "check_seeds", "diffusers_generate", "official_generate"]


@dataclass(frozen=True, slots=True)
class Generate:
    """A pipeline and how a comparison calls it. Called like a function, ``(prompt, seed, steps)``.

    Attributes:
        pipe: what `halfframe.enabled` is given.
        call: makes a clip, in any form that `halfframe.compare.as_video` takes.
        device: where the work is done, to be synchronised before a clock is read.
        facts: for the heading of the tables.
    """

    pipe: Any
    call: Callable[[str, int, int], Any]
    device: torch.device
    facts: Mapping[str, Any] = field(default_factory=dict)

    def __call__(self, prompt: str, seed: int, steps: int) -> Any:
        return self.call(prompt, seed, steps)


def official_generate(
    pipe: Any, *, size: tuple[int, int] = (1280, 720), frame_num: int = 81, **arguments: Any
) -> Generate:
    """For an official ``WanT2V``.

    Args:
        pipe: the pipeline.
        size: width and height in pixels.
        frame_num: video frames, 4n+1.
        **arguments: further ones of its ``generate``: ``shift``, ``guide_scale``, ``sample_solver``, ...
    """
    _check_clip(frame_num, *size)

    def call(prompt: str, seed: int, steps: int) -> Any:
        return pipe.generate(prompt, size=size, frame_num=frame_num, sampling_steps=steps, seed=seed, **arguments)

    facts: dict[str, Any] = {
        "pipeline": f"{type(pipe).__module__}.{type(pipe).__name__}",
        "video": f"{frame_num} frames {size[0]}x{size[1]}",
        "dtype": str(pipe.param_dtype).removeprefix("torch."),
        "scheduler": arguments.get("sample_solver", "unipc"),
        **{key: arguments[key] for key in ("shift", "guide_scale", "offload_model") if key in arguments},
    }
    return Generate(pipe, call, torch.device(pipe.device), facts)


def diffusers_generate(
    pipe: Any, *, size: tuple[int, int] = (1280, 720), num_frames: int = 81, **arguments: Any
) -> Generate:
    """For a diffusers ``WanPipeline``, or with ``image=...`` a ``WanImageToVideoPipeline``. Noise is drawn on the CPU.

    Args:
        pipe: the pipeline.
        size: width and height in pixels.
        num_frames: video frames, 4n+1.
        **arguments: further ones of its call: ``image``, ``guidance_scale``, ``negative_prompt``, ...
    """
    _check_clip(num_frames, *size)
    width, height = size

    def call(prompt: str, seed: int, steps: int) -> Any:
        return pipe(
            prompt=prompt,
            width=width,
            height=height,
            num_frames=num_frames,
            num_inference_steps=steps,
            generator=torch.Generator().manual_seed(seed),
            output_type="pt",
            **arguments,
        )

    config = getattr(pipe.scheduler, "config", {})
    shift = config.get("flow_shift", config.get("shift"))
    facts: dict[str, Any] = {
        "pipeline": f"diffusers {type(pipe).__name__}",
        "video": f"{num_frames} frames {width}x{height}",
        "dtype": str(pipe.transformer.dtype).removeprefix("torch."),
        "scheduler": type(pipe.scheduler).__name__,
        **({} if shift is None else {"shift": shift}),
        **{key: value for key, value in arguments.items() if isinstance(value, int | float)},
    }
    return Generate(pipe, call, torch.device(getattr(pipe, "_execution_device", pipe.device)), facts)


def check_seeds(seeds: Sequence[int]) -> None:
    """Refuse seeds that hosts take differently: below 0 the official package draws one of its own."""
    if not all(isinstance(seed, int) and 0 <= seed < 2**63 for seed in seeds):
        raise OptionError(f"seeds {list(seeds)}; needed: integers from 0 to 2**63 - 1 (below 0, hosts draw their own).")


def _check_clip(video_frames: int, width: int, height: int) -> None:
    frames.require_whole_groups(video_frames)
    if min(width, height) < 16 or width % 16 or height % 16:
        raise OptionError(f"size {width}x{height} does not fit; needed: width and height in multiples of 16 pixels.")
