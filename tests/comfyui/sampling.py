"""ComfyUI's sampler nodes, called as its executor calls them."""

from __future__ import annotations

import asyncio
import inspect
import types
from typing import Any

import torch
from torch import Tensor

from .experts import HEIGHT, LATENT_FRAMES, WIDTH, Experts
from .install import load

SEED = 7


def call(cls: Any, **inputs: Any) -> tuple[Any, ...]:
    """The outputs of a node of either kind of ComfyUI's interface."""
    with torch.inference_mode():  # as its executor has it
        return _call(cls, inputs)


def _call(cls: Any, inputs: dict[str, Any]) -> tuple[Any, ...]:
    inputs = {**_defaults(cls), **inputs}
    result = getattr(cls() if inspect.isfunction(getattr(cls, cls.FUNCTION)) else cls, cls.FUNCTION)(**inputs)
    if inspect.iscoroutine(result):
        result = asyncio.run(result)
    outputs = getattr(result, "result", result)
    return tuple(outputs)


def _defaults(cls: Any) -> dict[str, Any]:
    """What the front end sends for inputs that nobody touched; newer versions have more of them."""
    required = cls.INPUT_TYPES().get("required", {})
    return {name: more[0]["default"] for name, (_, *more) in required.items() if more and "default" in more[0]}


def empty(batch: int = 1, frames: int = LATENT_FRAMES) -> dict[str, Tensor]:
    """What *EmptyHunyuanLatentVideo* gives."""
    return {"samples": torch.zeros(batch, 16, frames, HEIGHT // 8, WIDTH // 8)}


def shifted(model: Any, shift: float = 5.0) -> Any:
    """*ModelSamplingSD3*."""
    return call(load().nodes_model_advanced.ModelSamplingSD3, model=model, shift=shift)[0]


def table(model: Any, steps: int, scheduler: str = "simple") -> Tensor:
    """The sigmas that a sampler node goes by, one more than steps."""
    return load().comfy.samplers.calculate_sigmas(model.get_model_object("model_sampling"), scheduler, steps)


def stage(
    model: Any,
    experts: Experts,
    latent: dict[str, Tensor],
    *,
    steps: int,
    start: int = 0,
    end: int = 10_000,
    cfg: float = 3.5,
    sampler: str = "euler",
    scheduler: str = "simple",
    seed: int = SEED,
    add_noise: bool | None = None,
    leftover: bool | None = None,
    conditions: tuple[list[Any], list[Any]] | None = None,
) -> dict[str, Tensor]:
    """*KSamplerAdvanced*: noise is added by the first of several stages, and left over by all but the last."""
    positive, negative = conditions or experts.conditions()
    add_noise = start == 0 if add_noise is None else add_noise
    leftover = end < steps if leftover is None else leftover
    (out,) = call(
        load().nodes.KSamplerAdvanced,
        model=model,
        add_noise="enable" if add_noise else "disable",
        noise_seed=seed,
        steps=steps,
        cfg=cfg,
        sampler_name=sampler,
        scheduler=scheduler,
        positive=positive,
        negative=negative,
        latent_image=latent,
        start_at_step=start,
        end_at_step=end,
        return_with_leftover_noise="enable" if leftover else "disable",
    )
    return out


def two_stages(
    high: Any,
    low: Any,
    experts: Experts,
    *,
    steps: int,
    split: int,
    latent: dict[str, Tensor] | None = None,
    **more: Any,
) -> Tensor:
    """The templates' wiring: the first `split` steps on one model, the others on the other; ``(B, 16, F, h, w)``."""
    middle = stage(high, experts, latent or empty(), steps=steps, end=split, **more)
    return stage(low, experts, middle, steps=steps, start=split, **more)["samples"]


def custom(
    model: Any,
    experts: Experts,
    latent: dict[str, Tensor],
    sigmas: Tensor,
    *,
    cfg: float = 3.5,
    sampler: str = "euler",
    seed: int | None = SEED,
    noise: Tensor | None = None,
    conditions: tuple[list[Any], list[Any]] | None = None,
) -> dict[str, Tensor]:
    """*SamplerCustomAdvanced* with *CFGGuider*; ``seed=None`` is *DisableNoise*, `noise` is taken as it is."""
    nodes = load().nodes_custom_sampler
    positive, negative = conditions or experts.conditions()
    if noise is not None:
        source: Any = types.SimpleNamespace(seed=seed, generate_noise=lambda _: noise)
    elif seed is None:
        (source,) = call(nodes.DisableNoise)
    else:
        (source,) = call(nodes.RandomNoise, noise_seed=seed)
    guider = call(nodes.CFGGuider, model=model, positive=positive, negative=negative, cfg=cfg)
    (method,) = call(nodes.KSamplerSelect, sampler_name=sampler)
    out, _ = call(
        nodes.SamplerCustomAdvanced,
        noise=source,
        guider=guider[0],
        sampler=method,
        sigmas=sigmas,
        latent_image=latent,
    )
    return out
