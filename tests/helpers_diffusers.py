"""The source's scheme on diffusers' parts, as a plain loop that carries half-length latents; and a few shorthands.

Written against the pipelines' experts, schedulers and `encode_prompt`, with nothing of halfframe, so that it can
contradict it. The library itself carries full-length latents: the two ways must give the same video.
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable
from contextlib import ExitStack, nullcontext
from typing import Any
from unittest import mock

import diffusers
import numpy as np
import torch
from PIL import Image
from torch import Tensor

import halfframe
from halfframe.testing import TINY

from .hosts.reference import NEGATIVE, duplicate

PROMPT = "a red ball rolls over stripes"
ARGS: dict[str, Any] = {
    "prompt": PROMPT,
    "negative_prompt": NEGATIVE,
    "height": 32,
    "width": 48,
    "num_frames": 17,
    "num_inference_steps": 8,
    "max_sequence_length": TINY.text_len,
    "output_type": "latent",
}

SCHEDULERS: dict[str, Callable[[], Any]] = {
    "unipc": lambda: diffusers.UniPCMultistepScheduler(
        prediction_type="flow_prediction", use_flow_sigmas=True, flow_shift=12.0
    ),
    "dpm++": lambda: diffusers.DPMSolverMultistepScheduler(
        prediction_type="flow_prediction", use_flow_sigmas=True, flow_shift=12.0
    ),
    "euler": lambda: diffusers.FlowMatchEulerDiscreteScheduler(shift=12.0),
    "stochastic euler": lambda: diffusers.FlowMatchEulerDiscreteScheduler(shift=12.0, stochastic_sampling=True),
    "heun": lambda: diffusers.FlowMatchHeunDiscreteScheduler(shift=12.0),
}


def picture(seed: int = 0) -> Image.Image:
    """A picture of noise, 48 x 32."""
    return Image.fromarray(np.random.default_rng(seed).integers(0, 255, (32, 48, 3), dtype=np.uint8))


def seeded(seed: int = 7) -> torch.Generator:
    """A CPU generator."""
    return torch.Generator().manual_seed(seed)


def run(pipe: Any, **changes: Any) -> Tensor:
    """Call `pipe` with `ARGS`; a picture is added where it needs one. Final latents ``(B, 16, F, h, w)``."""
    arguments: dict[str, Any] = {**ARGS, "generator": seeded()}
    if pipe.transformer.config.in_channels == 36:
        arguments["image"] = picture()
    frames: Tensor = pipe(**{**arguments, **changes}).frames
    return frames


@torch.no_grad()
def half_frame_latents(
    pipe: Any,
    *,
    num_frames: int = 17,
    steps: int = 8,
    half: bool = True,
    short_noise: bool = False,
    latents: Tensor | None = None,
    prompts: list[str] | None = None,
    guidance: tuple[float, float] = (5.0, 5.0),
    truncate: tuple[int, int] = (0, 0),
    reuse_delta: bool = False,
    every: int = 1,
    expand: Callable[[Tensor, int], Tensor] = duplicate,
    edit: Callable[[int, Tensor, bool], Tensor] | None = None,
) -> Tensor:
    """Final latents ``(B, 16, F, h, w)`` of a run whose high-noise expert gets every other latent frame.

    Args:
        pipe: whose experts, scheduler, and encoders are used.
        latents: to start from instead of the draw of `seeded`; full length.
        guidance: scales of the high- and of the low-noise expert.
        truncate: how many of the last steps, and of the high-noise expert's last, are conditional only.
        reuse_delta: those steps add the last guidance difference of the same expert.
        every: of the other steps, only each expert's 1st, ``1 + every``-th, ... compute that difference; all add it.
        edit: ``(step, latents, whether they are half) -> latents``, after each step.
    """
    total = (num_frames - 1) // 4 + 1
    kept = math.ceil(total / 2)
    prompts = prompts or [PROMPT]
    shape = (len(prompts), 16, kept if short_noise else total, 4, 6)
    latents = torch.randn(shape, generator=seeded()) if latents is None else latents
    halved = half and total > 1
    if halved and latents.shape[2] == total:
        latents = latents[:, :, ::2]

    dtype = pipe.transformer.dtype
    texts = pipe.encode_prompt(
        prompts, [NEGATIVE] * len(prompts), max_sequence_length=TINY.text_len, device=torch.device("cpu")
    )
    positive, negative = (text.to(dtype) for text in texts)
    condition = _condition(pipe, num_frames) if pipe.transformer.config.in_channels == 36 else None

    scheduler = type(pipe.scheduler).from_config(pipe.scheduler.config)
    scheduler.set_timesteps(steps, device="cpu")
    boundary = pipe.config.boundary_ratio * 1000
    delta: Tensor | None = None
    for i, t in enumerate(scheduler.timesteps):
        high = bool(t >= boundary)
        if i and not high and scheduler.timesteps[i - 1] >= boundary:
            delta = None
        if not high and halved:
            halved = False
            latents = expand(latents, total)
            grow(scheduler, lambda tensor: expand(tensor, total))
        model = pipe.transformer if high else pipe.transformer_2
        pipe._current_timestep = t  # some of diffusers' caches ask for it, others are told where they are
        where = {"step_index": i, "sigma": float(scheduler.sigmas[i]), "num_inference_steps": len(scheduler.timesteps)}
        if len(inspect.signature(model.cache_context).parameters) == 1:
            where = {}
        inputs = latents
        if condition is not None:
            inputs = torch.cat([latents, condition[:, :, ::2] if halved else condition], dim=1)

        def predict(
            name: str, text: Tensor, model: Any = model, inputs: Tensor = inputs, t: Tensor = t, where: Any = where
        ) -> Tensor:
            with model.cache_context(name, **where):
                output: tuple[Tensor] = model(
                    hidden_states=inputs.to(dtype),
                    timestep=t.expand(inputs.shape[0]),
                    encoder_hidden_states=text,
                    return_dict=False,
                )
            return output[0]

        velocity = predict("cond", positive)
        scale = guidance[0] if high else guidance[1]
        highs = int((scheduler.timesteps >= boundary).sum())
        anew = (i if high else i - highs) % every == 0
        truncated = i >= len(scheduler.timesteps) - truncate[0] or (high and i >= highs - truncate[1])
        if guidance[0] > 1 and not truncated and anew:
            without = predict("uncond", negative)
            delta = velocity - without
            velocity = without + scale * (velocity - without)
        elif delta is not None and (reuse_delta or not truncated):
            velocity = velocity + (scale - 1) * delta
        with kept_noise(halved, total):
            latents = scheduler.step(velocity, t, latents, return_dict=False)[0]
        if edit is not None:
            latents = edit(i, latents, halved)
    pipe._current_timestep = None
    return latents if latents.shape[2] == total else expand(latents, total)


def _condition(pipe: Any, num_frames: int) -> Tensor:
    image = pipe.video_processor.preprocess(picture(), height=32, width=48).to(torch.float32)
    _, condition = pipe.prepare_latents(
        image, 1, 16, 32, 48, num_frames, torch.float32, torch.device("cpu"), seeded(), None, None
    )
    return condition  # type: ignore[no-any-return]


def grow(scheduler: Any, function: Callable[[Tensor], Tensor]) -> None:
    """Pass what a scheduler remembers through `function`: the attributes of UniPC, DPM-Solver++ and Heun by name."""
    if hasattr(scheduler, "model_outputs"):
        scheduler.model_outputs = [None if m is None else function(m) for m in scheduler.model_outputs]
    for name in ("last_sample", "prev_derivative", "sample"):
        if getattr(scheduler, name, None) is not None:
            setattr(scheduler, name, function(getattr(scheduler, name)))


def kept_noise(halved: bool, total: int) -> Any:
    """What a stochastic scheduler draws for half a clip: the kept frames' part of the whole clip's noise."""
    if not halved:
        return nullcontext()

    def draw(like: Any, *_: Any, **__: Any) -> Tensor:
        shape = like.shape if isinstance(like, Tensor) else like
        return torch.randn(*shape[:2], total, *shape[3:])[:, :, ::2]

    stack = ExitStack()
    module = "diffusers.schedulers.scheduling_flow_match_euler_discrete"
    stack.enter_context(mock.patch("torch.randn_like", draw))
    stack.enter_context(mock.patch(f"{module}.randn_tensor", draw, create=True))
    return stack


class Seen:
    """Notes what the experts' first layers are given: ``(name, shape)`` per call. `take_off` removes it again."""

    def __init__(self, pipe: Any) -> None:
        self.calls: list[tuple[str, tuple[int, ...]]] = []
        self._handles = [self._watch(pipe, name) for name in ("transformer", "transformer_2")]

    def _watch(self, pipe: Any, name: str) -> Any:
        return getattr(pipe, name).patch_embedding.register_forward_pre_hook(
            lambda _, args: self.calls.append((name, tuple(args[0].shape)))
        )

    @property
    def latent_frames(self) -> list[tuple[str, int]]:
        """``(name, latent frames)`` per call."""
        return [(name, shape[2]) for name, shape in self.calls]

    def take_off(self) -> None:
        """Remove it."""
        for handle in self._handles:
            handle.remove()


def state(pipe: Any) -> dict[str, Any]:
    """Everything that halfframe could have left behind: attributes, hooks and weights of pipe, experts and scheduler.

    Numbers and tensors that the host itself renews with every run count by their type only.
    """
    found: dict[str, Any] = {"class": type(pipe)}
    owners = {"pipe": pipe, "scheduler": pipe.scheduler}
    for name in ("transformer", "transformer_2"):
        owners |= {f"{name}.{path}": module for path, module in getattr(pipe, name).named_modules()}
        found[f"{name} weights"] = [(id(p), p._version) for p in getattr(pipe, name).parameters()]
    for owner, obj in owners.items():
        for key, value in vars(obj).items():
            fixed = callable(value) or isinstance(value, torch.nn.Module)
            found[f"{owner}.{key}"] = id(value) if fixed else repr(value) if "hook" in key else type(value)
    return found


class AtSwitch:
    """What every run has at the expert switch."""

    def __init__(self) -> None:
        self.latents: list[Tensor] = []

    @halfframe.hookimpl
    def halfframe_boundary(self, boundary: halfframe.Boundary) -> None:
        self.latents.append(boundary.before)
