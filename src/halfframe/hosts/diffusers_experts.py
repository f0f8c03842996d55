"""What diffusers' pipelines for Wan have in common: two transformers, and what can be said of them before a run."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

import torch

from halfframe.errors import UnsupportedPipelineError
from halfframe.hosts.base import HostAdapter, Serve
from halfframe.hosts.diffusers_seams import EXPERTS, Routes, unwrapped
from halfframe.hosts.patching import Patches
from halfframe.report.cost import ExpertShape
from halfframe.sampling.host import HostFacts
from halfframe.sampling.run import SamplingRun

__all__ = ["config_value", "experts_refusal", "facts_of", "goes_with_frames", "lead_calls"]


def config_value(obj: Any, name: str, default: Any) -> Any:
    """What `obj`'s config has under `name`."""
    return getattr(getattr(obj, "config", None), name, default)


def experts_refusal(pipe: Any) -> str | None:
    """Why the transformers of `pipe` cannot be served: no expert switch, or inputs that cannot be cut (VACE)."""
    missing = [name for name in EXPERTS if getattr(pipe, name, None) is None]
    if config_value(pipe, "boundary_ratio", None) is None:
        missing.append("boundary_ratio")
    if missing:
        return (
            f"it has no {' and no '.join(missing)}, so there is no expert switch at which the clip could be "
            "brought back to full length. Use T2V-A14B or I2V-A14B, with both transformers loaded and "
            "boundary_ratio set (0.875 for T2V, 0.9 for I2V)."
        )
    if unwrapped(pipe.transformer) is unwrapped(pipe.transformer_2):
        return (
            "one module serves as both experts, so there is no expert switch. Load both transformers of the A14B model."
        )
    return next(filter(None, (_expert_refusal(name, getattr(pipe, name)) for name in EXPERTS)), None)


def _expert_refusal(name: str, module: Any) -> str | None:
    if not isinstance(module, torch.nn.Module):
        return f"its {name} is a {type(module).__name__}; needed: a torch.nn.Module, whose calls can be intercepted."
    config: Any = module.config
    patch_size = tuple(config.patch_size)
    if patch_size[0] != 1:
        return f"its {name} has patch_size {patch_size}, which spans several latent frames; needed: (1, h, w)."
    parameters = inspect.signature(type(unwrapped(module)).forward).parameters
    per_frame = [parameter for parameter in parameters if goes_with_frames(parameter)]
    if per_frame:
        return (
            f"its {name} also takes {' and '.join(per_frame)}, which go with the frames in a way that halfframe does "
            "not know. Use WanPipeline or WanImageToVideoPipeline."
        )
    return None


def goes_with_frames(parameter: str) -> bool:
    """Whether a transformer's parameter of this name is a full-length input beside the latents."""
    return parameter.endswith(("_hidden_states", "_pixel_values")) and not parameter.startswith("encoder_")


def lead_calls(
    adapter: HostAdapter,
    pipe: Any,
    patches: Patches,
    serve: Serve,
    facts: Callable[..., HostFacts],
    route: Callable[[Any, SamplingRun, Patches], Routes],
) -> None:
    """Have each call of `pipe` go through routes of its own, and have those follow parts that are exchanged meanwhile.

    Args:
        adapter: says whether `pipe` can be served.
        pipe: the pipeline.
        patches: what undoes it.
        serve: makes a run of a call.
        facts: of the pipeline and the arguments of a call.
        route: ``(pipe, run, local)`` leads the parts through a run.
    """
    kind = type(pipe).__name__
    routes: list[Routes] = []  # of the run that is going on

    def call(original: Any, pipe: Any, *args: Any, **kwargs: Any) -> Any:
        reason = adapter.refusal(pipe)  # its parts may have been exchanged since
        if reason:
            raise UnsupportedPipelineError(f"{kind} cannot be made faster: {reason}")

        def body(run: SamplingRun, local: Patches) -> Any:
            local.callback(routes.clear)
            routes.append(route(pipe, run, local))
            return original(*args, **kwargs)

        return serve(facts(pipe, *args, **kwargs), body)

    def set_attribute(original: Any, _: Any, name: str, value: Any) -> None:
        original(name, value)
        for one in routes:
            one.replaced(name, value)

    patches.methods(pipe, {"__call__": call, "__setattr__": set_attribute})


def facts_of(name: str, pipe: Any, text_len: int, conditioning_frames: tuple[int, ...]) -> HostFacts:
    """What a run of `pipe` is told of it; `name` is the adapter's, `text_len` the tokens of a prompt."""
    config = pipe.transformer.config
    time, height, width = config.patch_size
    boundary = pipe.config.boundary_ratio * pipe.scheduler.config.num_train_timesteps
    return HostFacts(
        name=name,
        # The loop compares a float32 timestep with this number, so it is rounded as the comparison rounds it.
        boundary=torch.tensor(boundary, dtype=torch.float32).item(),
        patch_size=(time, height, width),
        temporal_stride=getattr(pipe, "vae_scale_factor_temporal", 4),
        expert_shape=_expert_shape(config, text_len),
        conditioning_frames=conditioning_frames,
        conditioned=config.in_channels != config.out_channels,
    )


def _expert_shape(config: Any, text_len: int) -> ExpertShape | None:
    names = ("num_attention_heads", "attention_head_dim", "ffn_dim", "num_layers")
    sizes = [size for name in names if isinstance(size := getattr(config, name, None), int)]
    if len(sizes) < len(names):
        return None
    heads, head_dim, ffn_dim, num_layers = sizes
    return ExpertShape(heads * head_dim, ffn_dim, num_layers, text_len)
