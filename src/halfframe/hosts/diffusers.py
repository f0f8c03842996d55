"""diffusers: ``WanPipeline`` and ``WanImageToVideoPipeline`` with the two experts of A14B.

Their loop reaches everything through the pipeline: ``prepare_latents``, ``scheduler.step`` and the two transformers.
Each is patched for one run. ``__call__`` is looked up on the type, so the instance is given a subclass of its class.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch

from halfframe.errors import UnsupportedPipelineError
from halfframe.hosts.base import HostDiagnosis, Serve
from halfframe.hosts.diffusers_seams import EXPERTS, Routes, unwrapped
from halfframe.hosts.patching import Patches
from halfframe.hosts.source import class_methods, package_version
from halfframe.report.cost import ExpertShape
from halfframe.sampling.host import HostFacts
from halfframe.sampling.run import SamplingRun

__all__ = ["DiffusersWan"]

_SEAMS = ("prepare_latents", "scheduler", "step", *EXPERTS)
_ABSENT = object()


class DiffusersWan:
    """Adapter for diffusers' Wan pipelines; needs ``transformer``, ``transformer_2`` and ``config.boundary_ratio``."""

    name = "diffusers"
    serves = "a diffusers WanPipeline or WanImageToVideoPipeline"

    def diagnose(self) -> Sequence[HostDiagnosis]:
        """The package's two-expert pipelines, as far as their source tells."""
        modules = {
            "pipeline_wan": "WanPipeline",
            "pipeline_wan_i2v": "WanImageToVideoPipeline",
            "pipeline_wan_vace": "WanVACEPipeline",
        }
        return [_diagnose(module, cls) for module, cls in modules.items()]

    def recognises(self, pipe: object) -> bool:
        """Anything with a transformer, a scheduler, ``prepare_latents`` and a ``boundary_ratio`` in its config."""
        has_parts = all(hasattr(pipe, name) for name in ("transformer", "scheduler", "vae", "prepare_latents"))
        return has_parts and _config(pipe, "boundary_ratio", _ABSENT) is not _ABSENT

    def refusal(self, pipe: Any) -> str | None:
        """No expert switch (TI2V-5B, Wan2.1, one module as both experts), or inputs that cannot be cut (VACE)."""
        if _config(pipe, "expand_timesteps", False):
            return (
                "its config has expand_timesteps, as TI2V-5B, where one transformer serves every timestep, so there is "
                "no expert switch at which the clip could be brought back to full length. Use T2V-A14B or I2V-A14B."
            )
        missing = [name for name in EXPERTS if getattr(pipe, name, None) is None]
        if _config(pipe, "boundary_ratio", None) is None:
            missing.append("boundary_ratio")
        if missing:
            return (
                f"it has no {' and no '.join(missing)}, so there is no expert switch at which the clip could be "
                "brought back to full length. Use T2V-A14B or I2V-A14B, with both transformers loaded and "
                "boundary_ratio set (0.875 for T2V, 0.9 for I2V)."
            )
        if unwrapped(pipe.transformer) is unwrapped(pipe.transformer_2):
            return (
                "one module serves as both experts, so there is no expert switch. Load both transformers of the A14B "
                "model."
            )
        return next(filter(None, (_expert_refusal(name, getattr(pipe, name)) for name in EXPERTS)), None)

    def prefetch_refusal(self, pipe: Any) -> str | None:
        """Always: placement belongs to diffusers."""
        return (
            "diffusers' own offloading (accelerate's hooks, group offloading) decides where its transformers are. Use "
            "pipe.enable_model_cpu_offload() or enable_group_offload(..., use_stream=True) there"
        )

    def attach(self, pipe: Any, patches: Patches, serve: Serve) -> None:
        """Have calls of `pipe` go through a run's seams, and follow parts that are exchanged during one."""
        cls = type(pipe)
        routes: list[Routes] = []  # of the run that is going on

        def call(original: Any, pipe: Any, *args: Any, **kwargs: Any) -> Any:
            reason = self.refusal(pipe)  # its parts may have been exchanged since
            if reason:
                raise UnsupportedPipelineError(f"{cls.__name__} cannot be made faster: {reason}")

            def body(run: SamplingRun, local: Patches) -> Any:
                local.callback(routes.clear)
                routes.append(Routes(pipe, run, local))
                return original(*args, **kwargs)

            return serve(self._facts(pipe, _arguments(cls.__call__, pipe, *args, **kwargs)), body)

        def set_attribute(original: Any, _: Any, name: str, value: Any) -> None:
            original(name, value)
            for route in routes:
                route.replaced(name, value)

        patches.methods(pipe, {"__call__": call, "__setattr__": set_attribute})

    def _facts(self, pipe: Any, arguments: Mapping[str, Any]) -> HostFacts:
        config = pipe.transformer.config
        time, height, width = config.patch_size
        boundary = pipe.config.boundary_ratio * pipe.scheduler.config.num_train_timesteps
        return HostFacts(
            name=self.name,
            # The loop compares a float32 timestep with this number, so it is rounded as the comparison rounds it.
            boundary=torch.tensor(boundary, dtype=torch.float32).item(),
            patch_size=(time, height, width),
            temporal_stride=getattr(pipe, "vae_scale_factor_temporal", 4),
            expert_shape=_expert_shape(config, arguments.get("max_sequence_length", 512)),
            # The last frame is conditioned on an image of its own, which a skipped frame would never show the expert.
            conditioning_frames=(-1,) if arguments.get("last_image") is not None else (),
            conditioned=config.in_channels != config.out_channels,
        )


def _diagnose(module: str, cls: str) -> HostDiagnosis:
    package, version = package_version("diffusers")
    methods = class_methods("diffusers", f"pipelines.wan.{module}", cls)
    init, loop = methods.get("__init__"), methods.get("__call__")
    keywords = [name for names in (loop.co_consts if loop else ()) if isinstance(names, tuple) for name in names]
    experts = init is not None and {*EXPERTS, "boundary_ratio"} <= set(init.co_varnames)
    seams = {
        "two experts": experts,
        **{f"{name} in __call__": loop is not None and name in loop.co_names for name in _SEAMS},
    }
    per_frame = [name for name in keywords if isinstance(name, str) and _goes_with_frames(name)]
    if version is None:
        verdict = "not installed"
    elif not methods:
        verdict = f"refused: {version} has no such class"
    elif not experts:
        verdict = "refused: one transformer serves every timestep, so there is no expert switch"
    elif per_frame:
        verdict = f"refused: its transformers also take {' and '.join(sorted(set(per_frame)))}"
    elif not all(seams.values()):
        verdict = "refused: its __call__ is not the sampling loop that halfframe knows"
    else:
        verdict = "served"
    return HostDiagnosis(f"diffusers.{cls}", package, version, seams if methods else {}, verdict)


def _goes_with_frames(parameter: str) -> bool:
    """Whether a transformer's parameter of this name is a full-length input beside the latents."""
    return parameter.endswith(("_hidden_states", "_pixel_values")) and not parameter.startswith("encoder_")


def _expert_refusal(name: str, module: Any) -> str | None:
    if not isinstance(module, torch.nn.Module):
        return f"its {name} is a {type(module).__name__}; needed: a torch.nn.Module, whose calls can be intercepted."
    config: Any = module.config
    patch_size = tuple(config.patch_size)
    if patch_size[0] != 1:
        return f"its {name} has patch_size {patch_size}, which spans several latent frames; needed: (1, h, w)."
    parameters = inspect.signature(type(unwrapped(module)).forward).parameters
    per_frame = [parameter for parameter in parameters if _goes_with_frames(parameter)]
    if per_frame:
        return (
            f"its {name} also takes {' and '.join(per_frame)}, which go with the frames in a way that halfframe does "
            "not know. Use WanPipeline or WanImageToVideoPipeline."
        )
    return None


def _config(obj: Any, name: str, default: Any) -> Any:
    return getattr(getattr(obj, "config", None), name, default)


def _arguments(function: Callable[..., Any], *args: Any, **kwargs: Any) -> Mapping[str, Any]:
    """What `function` would be called with, defaults included; nothing if the call is a wrong one."""
    try:
        bound = inspect.signature(function).bind(*args, **kwargs)
    except TypeError:
        return {}  # the host says better what is wrong
    bound.apply_defaults()
    return bound.arguments


def _expert_shape(config: Any, text_len: int) -> ExpertShape | None:
    names = ("num_attention_heads", "attention_head_dim", "ffn_dim", "num_layers")
    sizes = [size for name in names if isinstance(size := getattr(config, name, None), int)]
    if len(sizes) < len(names):
        return None
    heads, head_dim, ffn_dim, num_layers = sizes
    return ExpertShape(heads * head_dim, ffn_dim, num_layers, text_len)
