"""diffusers: ``WanPipeline`` and ``WanImageToVideoPipeline`` with the two experts of A14B.

Their loop reaches everything through the pipeline: ``prepare_latents``, ``scheduler.step`` and the two transformers.
Each is patched for one run. ``__call__`` is looked up on the type, so the instance is given a subclass of its class.
"""

from __future__ import annotations

import functools
import importlib
import inspect
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from halfframe import frames
from halfframe.cost import ExpertShape
from halfframe.errors import HalfframeError, UnsupportedPipelineError
from halfframe.hosts.base import HostDiagnosis, StartRun, patch_solver, same_named_subclass
from halfframe.hosts.calls import intercept, is_compiled
from halfframe.hosts.positions import diffusers_positions
from halfframe.hosts.source import class_methods, package_version
from halfframe.patching import Patches
from halfframe.run import SamplingRun
from halfframe.seams import HostFacts, NoiseSource
from halfframe.strategies.base import Expert

__all__ = ["DiffusersWan"]

_EXPERTS: dict[str, Expert] = {"transformer": "high", "transformer_2": "low"}
_SEAMS = ("prepare_latents", "scheduler", "step", *_EXPERTS)
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
        missing = [name for name in _EXPERTS if getattr(pipe, name, None) is None]
        if _config(pipe, "boundary_ratio", None) is None:
            missing.append("boundary_ratio")
        if missing:
            return (
                f"it has no {' and no '.join(missing)}, so there is no expert switch at which the clip could be "
                "brought back to full length. Use T2V-A14B or I2V-A14B, with both transformers loaded and "
                "boundary_ratio set (0.875 for T2V, 0.9 for I2V)."
            )
        if _unwrapped(pipe.transformer) is _unwrapped(pipe.transformer_2):
            return (
                "one module serves as both experts, so there is no expert switch. Load both transformers of the A14B "
                "model."
            )
        return next(filter(None, (_expert_refusal(name, getattr(pipe, name)) for name in _EXPERTS)), None)

    def preload_refusal(self, pipe: Any) -> str | None:
        """Always: placement belongs to diffusers."""
        return (
            "diffusers' own offloading (accelerate's hooks, group offloading) decides where its transformers are. Use "
            "pipe.enable_model_cpu_offload() or enable_group_offload(..., use_stream=True) there"
        )

    def attach(self, pipe: Any, patches: Patches, start: StartRun) -> None:
        """Give `pipe` a subclass of its class whose ``__call__`` puts the same call through a run's seams."""
        cls = type(pipe)

        @functools.wraps(cls.__call__)
        def call(obj: Any, *args: Any, **kwargs: Any) -> Any:
            if obj is not pipe or not patches.active:  # a copy, or a class that somebody else built on ours
                return cls.__call__(obj, *args, **kwargs)
            reason = self.refusal(pipe)  # its parts may have been exchanged since
            if reason:
                raise UnsupportedPipelineError(f"{cls.__name__} cannot be halved: {reason}")
            arguments = _arguments(cls.__call__, pipe, *args, **kwargs)
            with start(self._facts(pipe, arguments)) as run, Patches() as local:
                _serve_noise(pipe, run, local)
                patch_solver(pipe.scheduler, run, local)
                _keep_caches_apart(pipe, run, local)
                for name, expert in _EXPERTS.items():
                    _route_expert(getattr(pipe, name), expert, run, local)
                return cls.__call__(pipe, *args, **kwargs)

        patches.set_class(pipe, same_named_subclass(cls, {"__call__": call}))

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
            pinned=(-1,) if arguments.get("last_image") is not None else (),
            conditioned=config.in_channels != config.out_channels,
        )


def _diagnose(module: str, cls: str) -> HostDiagnosis:
    package, version = package_version("diffusers")
    methods = class_methods("diffusers", f"pipelines.wan.{module}", cls)
    init, loop = methods.get("__init__"), methods.get("__call__")
    keywords = [name for names in (loop.co_consts if loop else ()) if isinstance(names, tuple) for name in names]
    experts = init is not None and {*_EXPERTS, "boundary_ratio"} <= set(init.co_varnames)
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
    parameters = inspect.signature(type(_unwrapped(module)).forward).parameters
    per_frame = [parameter for parameter in parameters if _goes_with_frames(parameter)]
    if per_frame:
        return (
            f"its {name} also takes {' and '.join(per_frame)}, which go with the frames in a way that halfframe does "
            "not know. Use WanPipeline or WanImageToVideoPipeline."
        )
    return None


def _serve_noise(pipe: Any, run: SamplingRun, local: Patches) -> None:
    """Have the pipeline start from the run's latents: it prepares its own, and those are exchanged."""
    original = pipe.prepare_latents

    @functools.wraps(original)
    def prepare_latents(*args: Any, **kwargs: Any) -> Any:
        if run.allocated or not local.active:
            return original(*args, **kwargs)
        arguments = inspect.signature(original).bind(*args, **kwargs).arguments
        given = arguments.get("latents") is not None
        generators = [] if given else _generators(arguments.get("generator"), arguments.get("device"))
        states = [(generator, generator.get_state()) for generator in generators]
        prepared = original(*args, **kwargs)
        latents = prepared[0] if isinstance(prepared, tuple) else prepared
        for generator, state in states:  # the run draws for itself, from where the host began
            generator.set_state(state)
        draw = _cut(latents) if given else _drawing(arguments.get("generator"), latents)
        source = NoiseSource(draw, generators, latents.dtype, latents.device)
        allocated = run.allocate(tuple(latents.shape), source)
        return (allocated, *prepared[1:]) if isinstance(prepared, tuple) else allocated

    local.set(pipe, "prepare_latents", prepare_latents)


def _drawing(generator: Any, like: Tensor) -> Callable[[tuple[int, ...]], Tensor]:
    """Draw as the pipeline does: from one generator, from one per clip, or from the device's own."""
    randn_tensor = importlib.import_module("diffusers.utils.torch_utils").randn_tensor
    return lambda shape: randn_tensor(shape, generator=generator, device=like.device, dtype=like.dtype)


def _cut(latents: Tensor) -> Callable[[tuple[int, ...]], Tensor]:
    """Latents that the user gave, in place of a draw: all of them, or those of the kept frames."""
    num_frames = latents.shape[frames.TIME_DIM]
    kept = frames.take(latents, frames.kept_indices(num_frames))

    def draw(shape: tuple[int, ...]) -> Tensor:
        for noise in (latents, kept):
            if noise.shape == shape:
                return noise.clone()
        raise HalfframeError(
            f"noise of shape {tuple(shape)} was asked for, but the latents are given, shape {tuple(latents.shape)}; "
            "leave out `latents`, so that noise can be drawn."
        )

    return draw


def _generators(generator: Any, device: Any) -> Sequence[torch.Generator]:
    if isinstance(generator, torch.Generator):
        return [generator]
    if generator:
        return list(generator)
    device = torch.device(device or "cpu")
    if device.type == "cpu":
        return [torch.default_generator]
    backend = getattr(torch, device.type)
    defaults = getattr(backend, "default_generators", None)
    if not defaults:
        raise HalfframeError(f"the random state of device {str(device)!r} is out of reach; pass `generator`.")
    return [defaults[backend.current_device() if device.index is None else device.index]]


def _route_expert(module: torch.nn.Module, expert: Expert, run: SamplingRun, local: Patches) -> None:
    """Have calls of `module` made through `run`: its input cut in time, its output filled up again."""
    config: Any = module.config
    plain = _unwrapped(module)
    channels = config.out_channels or config.in_channels

    def around(original: Callable[..., Any], kwargs: dict[str, Any], args: tuple[Any, ...]) -> Any:
        hidden_states = kwargs.get("hidden_states")
        if args or not isinstance(hidden_states, Tensor):
            raise HalfframeError(
                f"the {expert}-noise expert was called with {len(args)} positional arguments and keywords "
                f"{sorted(kwargs)}; needed: keywords only, with `hidden_states`. Use a supported version of diffusers "
                "(see the README)."
            )
        _refuse_per_frame(expert, hidden_states, kwargs)
        stand_in = run.stand_in()
        if stand_in is not None:
            return (stand_in,) if kwargs.get("return_dict") is False else _model_output(stand_in)
        # Image-to-video appends its condition to the channels; it goes with the frames.
        condition = hidden_states[:, channels:]
        latents = hidden_states[:, :channels] if condition.shape[1] else hidden_states
        call = run.before_call(expert, latents)
        if call.inputs is not latents:
            kwargs = {**kwargs, "hidden_states": torch.cat([call.inputs, call.cut(condition)], dim=1)}
        if call.mixture is not None:
            kwargs = {**kwargs, "timestep": call.timestep(kwargs["timestep"])}
        compiled = module is not plain or is_compiled(plain)
        with diffusers_positions(plain, call.positions, compiled):
            output = original(**kwargs)
        if isinstance(output, tuple):
            return (run.after_call(call, output[0]), *output[1:])
        return _model_output(run.after_call(call, output.sample))

    local.callback(intercept(module, around))


def _model_output(sample: Tensor) -> Any:
    return importlib.import_module("diffusers.models.modeling_outputs").Transformer2DModelOutput(sample=sample)


def _refuse_per_frame(expert: Expert, hidden_states: Tensor, kwargs: dict[str, Any]) -> None:
    for name, value in kwargs.items():
        if (
            name != "hidden_states"
            and isinstance(value, Tensor)
            and value.ndim == 5
            and value.shape[frames.TIME_DIM] == hidden_states.shape[frames.TIME_DIM]
        ):
            raise HalfframeError(
                f"the {expert}-noise expert was given {name!r}, shape {tuple(value.shape)}, which goes with the "
                "frames in a way that halfframe does not know; run this pipeline without halfframe."
            )


def _keep_caches_apart(pipe: Any, run: SamplingRun, local: Patches) -> None:
    """Have diffusers' own caches (first block, attention broadcast, ...) forget wherever the computed frames change.

    They hand an expert what it computed at an earlier step, which must have been for the same frames. It is done
    between steps, because within one they are told which forward is going on, and forgetting loses that too.
    """
    experts = [getattr(pipe, name) for name in _EXPERTS]

    def forget() -> None:
        for module in experts:
            # Without a cache there is nothing to forget, which takes far longer than to see that there is none.
            if hasattr(module, "_reset_stateful_cache") and _has_hooks(module):
                module._reset_stateful_cache()

    original = pipe.scheduler.step

    @functools.wraps(original)
    def step(*args: Any, **kwargs: Any) -> Any:
        before = run.coming
        result = original(*args, **kwargs)
        after = run.coming
        if before is None or after is None or before[1:] != after[1:]:
            if before is not None and after is not None and before[0] == after[0]:
                _refuse_faster_cache(experts)
            forget()
        return result

    forget()
    local.callback(forget)
    local.set(pipe.scheduler, "step", step)


def _has_hooks(expert: Any) -> bool:
    """Whether diffusers' hooks are on any part of `expert`; its caches are such, and so is its group offloading."""
    registries = (getattr(module, "_diffusers_hook", None) for module in expert.modules())
    return any(registry is not None and registry.hooks for registry in registries)


def _refuse_faster_cache(experts: Sequence[Any]) -> None:
    """FasterCache reuses what it remembers without asking whether there is anything, so it must not forget midway."""
    for module in experts:
        cache = type(getattr(_unwrapped(module), "_cache_config", None)).__name__
        if cache == "FasterCacheConfig":
            raise HalfframeError(
                f"{type(_unwrapped(module)).__name__} has FasterCache on, and the strategy's kept frames change from "
                "step to step, so what is cached is of other frames; call disable_cache(), use another cache, or a "
                "strategy that keeps the same frames, such as 'self-duplicate'."
            )


def _config(obj: Any, name: str, default: Any) -> Any:
    return getattr(getattr(obj, "config", None), name, default)


def _unwrapped(module: Any) -> Any:
    """The module in the wrapper that ``torch.compile`` makes, or `module` itself."""
    return getattr(module, "_orig_mod", module)


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
