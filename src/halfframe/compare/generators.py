"""``generate(prompt, seed, steps)`` for the pipelines that halfframe serves: the hosts of a session."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from halfframe.errors import OptionError
from halfframe.plan import plan
from halfframe.report.report import Report
from halfframe.sampling import frames

__all__ = ["Generate", "Spot", "check_seeds", "diffusers_generate", "official_generate"]

Options = Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Spot:
    """A callable of a pipeline to be timed.

    Attributes:
        owner: object or class that has it.
        attribute: its name there.
        part: what its time counts as: an expert (``"high"``, ``"low"``), ``"scheduler"``, ``"vae"`` or ``"text"``.
        subject: what is of interest in its arguments: an expert's latents, the VAE's.
    """

    owner: Any
    attribute: str
    part: str
    subject: Callable[..., Tensor] | None = None


@dataclass(frozen=True, slots=True)
class Generate:
    """A pipeline and how a session calls it. Called like a function, ``(prompt, seed, steps)``.

    Attributes:
        pipe: what `halfframe.enabled` is given.
        call: makes a clip, in any form that `halfframe.compare.as_video` takes.
        device: where the work is done, to be synchronised before a clock is read.
        facts: for the heading of the tables.
        spots: where in it the clock is read, if parts are to be timed.
        plan: ``(options, steps)``: what a run is going to compute; None if that cannot be told.
        gather: a value of every process that makes the clips, by rank; by default there is one process.
    """

    pipe: Any
    call: Callable[[str, int, int], Any]
    device: torch.device
    facts: Mapping[str, Any] = field(default_factory=dict)
    spots: Callable[[], Sequence[Spot]] = tuple
    plan: Callable[[Options | None, int], Report] | None = None
    gather: Callable[[Any], list[Any]] = lambda value: [value]

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

    def spots() -> list[Spot]:
        module: Any = importlib.import_module("wan.text2video")
        names = {"unipc": "FlowUniPCMultistepScheduler", "dpm++": "FlowDPMSolverMultistepScheduler"}
        return [
            Spot(pipe.high_noise_model, "forward", "high", lambda x, *_, **__: x[0]),
            Spot(pipe.low_noise_model, "forward", "low", lambda x, *_, **__: x[0]),
            Spot(getattr(module, names[arguments.get("sample_solver", "unipc")]), "step", "scheduler"),
            Spot(pipe.vae, "decode", "vae", lambda x, *_, **__: x[0]),
            Spot(type(pipe.text_encoder), "__call__", "text"),
        ]

    def planned(options: Options | None, steps: int) -> Report:
        given = {key: arguments[key] for key in ("shift", "sample_solver") if key in arguments}
        return _planned(options, steps, size, frame_num, boundary=pipe.boundary, **{"shift": 5.0, **given})

    facts: dict[str, Any] = {
        "pipeline": f"{type(pipe).__module__}.{type(pipe).__name__}",
        "video": f"{frame_num} frames {size[0]}x{size[1]}",
        "dtype": str(pipe.param_dtype).removeprefix("torch."),
        "scheduler": arguments.get("sample_solver", "unipc"),
        **{key: arguments[key] for key in ("shift", "guide_scale", "offload_model") if key in arguments},
    }
    return Generate(pipe, call, torch.device(pipe.device), facts, spots, planned)


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

    def spots() -> list[Spot]:
        return [
            Spot(pipe.transformer, "forward", "high", lambda hidden_states, **_: hidden_states),
            Spot(pipe.transformer_2, "forward", "low", lambda hidden_states, **_: hidden_states),
            Spot(type(pipe.scheduler), "step", "scheduler"),
            Spot(pipe.vae, "decode", "vae", lambda x, *_, **__: x),
            Spot(pipe, "encode_prompt", "text"),
        ]

    def planned(options: Options | None, steps: int) -> Report:
        guided = arguments.get("guidance_scale", 5.0) > 1
        boundary = pipe.config.boundary_ratio
        return _planned(options, steps, size, num_frames, boundary=boundary, shift=shift or 1.0, guided=guided)

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
    return Generate(pipe, call, torch.device(getattr(pipe, "_execution_device", pipe.device)), facts, spots, planned)


def check_seeds(seeds: Sequence[int]) -> None:
    """Refuse seeds that hosts take differently: below 0 the official package draws one of its own."""
    if not all(isinstance(seed, int) and 0 <= seed < 2**63 for seed in seeds):
        raise OptionError(f"seeds {list(seeds)}; needed: integers from 0 to 2**63 - 1 (below 0, hosts draw their own).")


def _planned(options: Options | None, steps: int, size: tuple[int, int], video_frames: int, **clip: Any) -> Report:
    asked = {"strategy": None} if options is None else options
    computing: dict[str, Any] = {key: value for key, value in asked.items() if key not in ("measure", "plugins")}
    return plan(size=size, frame_num=video_frames, sampling_steps=steps, **clip, **computing).report


def _check_clip(video_frames: int, width: int, height: int) -> None:
    frames.require_whole_groups(video_frames)
    if min(width, height) < 16 or width % 16 or height % 16:
        raise OptionError(f"size {width}x{height} does not fit; needed: width and height in multiples of 16 pixels.")
