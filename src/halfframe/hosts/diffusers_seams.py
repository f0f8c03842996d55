"""The seams of one run in a diffusers pipeline: its noise, its scheduler, its two transformers.

The loop reaches everything through the pipeline, so parts that are exchanged during a run are followed. An expert is
also called for other purposes (a preview, say, by a callback): the adapter says when a call is the loop's own.
"""

from __future__ import annotations

import importlib
import inspect
import threading
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from halfframe.errors import HalfframeError
from halfframe.hosts.base import patch_scheduler
from halfframe.hosts.cache_dit import CacheDit
from halfframe.hosts.calls import intercept, is_compiled
from halfframe.hosts.patching import Patches, StandIn
from halfframe.hosts.rope import RopePositions
from halfframe.sampling import frames
from halfframe.sampling.frame_map import FrameMap
from halfframe.sampling.host import ForwardPass, NoiseSource
from halfframe.sampling.run import Coming, SamplingRun
from halfframe.sampling.strategy import Expert

__all__ = ["EXPERTS", "Routes", "unwrapped"]

EXPERTS: dict[str, Expert] = {"transformer": "high", "transformer_2": "low"}


class Routes:
    """Leads the parts of `pipe` through `run`, until `local` is undone.

    Args:
        pipe: the pipeline.
        run: what its parts are led through.
        local: what undoes it.
        sources: the objects whose ``prepare_latents`` makes the latents that `pipe` starts from.

    """

    def __init__(self, pipe: Any, run: SamplingRun, local: Patches, sources: Sequence[Any]) -> None:
        self._within_step = True  # whether what is called now is the loop's own; ends with the scheduler's step
        self._pipe = pipe
        self._run = run
        self._local = local
        self._thread = threading.get_ident()
        self._schedulers: list[Any] = []  # that the run is in front of
        self._cache_dit = CacheDit(local)
        self._computed: Coming = None  # at the latest step that computed anything
        local.callback(self._release)
        for source in sources:
            _serve_noise(source, run, local)
        self._forget()
        local.callback(self._forget)
        self._route_scheduler(pipe.scheduler)
        for name in EXPERTS:
            self._route_expert(name, getattr(pipe, name))

    def _release(self) -> None:
        """What was patched in is garbage now, and must not keep the pipeline until it is collected."""
        self._pipe = None
        self._schedulers.clear()

    def mark(self, within_step: bool) -> None:
        """Say whether calls from now on are the loop's own; another thread's word is not about this run."""
        if threading.get_ident() == self._thread:
            self._within_step = within_step

    def replaced(self, name: str, value: Any) -> None:
        """The pipeline's attribute `name` was set to `value` during the run."""
        if name == "scheduler":
            self._route_scheduler(value)
        elif name in EXPERTS and isinstance(value, torch.nn.Module):
            self._route_expert(name, value)

    def _route_scheduler(self, scheduler: Any) -> None:
        if any(scheduler is known for known in self._schedulers):
            self._run.attach(scheduler)
            return
        self._schedulers.append(scheduler)
        patch_scheduler(scheduler, self._run, self._local, self._after_step)

    def _after_step(self, before: Coming, coming: Coming) -> None:
        self._within_step = False
        if before is None or isinstance(before[1], FrameMap | None):
            self._computed = before
        if coming is None or isinstance(coming[1], FrameMap | None):
            self._keep_caches_apart(self._computed, coming)

    def _keep_caches_apart(self, before: Coming, after: Coming) -> None:
        """Have caches (diffusers' own, cache-dit's) forget wherever the frames change.

        They hand an expert what it computed at an earlier step, which must have been for the same frames. It is done
        between steps, because within one they are told which pass is going on, and forgetting loses that too.
        """
        if before is not None and after is not None and before[1] == after[1]:
            return
        if before is not None and after is not None and before[0] == after[0]:
            self._refuse_faster_cache()
        self._forget()

    def _forget(self) -> None:
        for module in self._experts():
            self._cache_dit.forget(unwrapped(module))
            # Without a cache there is nothing to forget, which takes far longer than to see that there is none.
            if hasattr(module, "_reset_stateful_cache") and _has_hooks(module):
                module._reset_stateful_cache()

    def _refuse_faster_cache(self) -> None:
        """FasterCache reuses what it remembers without asking whether there is any, so it must not forget midway."""
        for module in map(unwrapped, self._experts()):
            if type(getattr(module, "_cache_config", None)).__name__ == "FasterCacheConfig":
                raise HalfframeError(
                    f"{type(module).__name__} has FasterCache on, and the frames that are computed change from step to "
                    "step, so what is cached is of other frames; call disable_cache(), use another cache, or a "
                    "strategy that keeps the same frames, such as 'self-duplicate'."
                )

    def _experts(self) -> list[Any]:
        return [getattr(self._pipe, name) for name in EXPERTS]

    def _route_expert(self, name: str, module: torch.nn.Module) -> None:
        """Have calls of `module` made through the run: its input reduced in time, its output expanded again."""
        config: Any = module.config
        plain = unwrapped(module)
        channels = config.out_channels or config.in_channels
        expert = EXPERTS[name]
        rope = RopePositions(plain, self._local)

        def around(original: Callable[..., Any], kwargs: dict[str, Any], args: tuple[Any, ...]) -> Any:
            if not self._within_step:  # a callback's call
                return original(*args, **kwargs)
            hidden_states = kwargs.get("hidden_states")
            if args or not isinstance(hidden_states, Tensor):
                raise HalfframeError(
                    f"the {expert}-noise expert was called with {len(args)} positional arguments and keywords "
                    f"{sorted(kwargs)}; needed: keywords only, with `hidden_states`. Use a supported version of "
                    "diffusers (see the README)."
                )
            _refuse_per_frame(expert, hidden_states, kwargs)
            # Image-to-video appends its condition to the channels; it goes with the frames.
            condition = hidden_states[:, channels:]
            latents = hidden_states[:, :channels] if condition.shape[1] else hidden_states

            left_out = True

            def compute(made: ForwardPass) -> Tensor:
                nonlocal left_out
                left_out = False
                given = dict(kwargs)
                if made.latents is not latents:
                    parts = (made.latents, made.cut(condition)) if condition.shape[1] else (made.latents,)
                    given["hidden_states"] = torch.cat(parts, dim=1)
                if made.bound is not None:
                    given["timestep"] = made.timestep(given["timestep"])
                compiled = module is not plain or is_compiled(plain)
                _refuse_uneven_groups(plain, made)
                with rope.at(made.positions, made.step, compiled):
                    output = original(**given)
                prediction: Tensor = output[0] if isinstance(output, tuple) else output.sample
                return prediction

            velocity = self._run.forward(expert, latents, compute)
            if left_out:
                self._cache_dit.left_out(plain)
            return (velocity,) if kwargs.get("return_dict") is False else _model_output(velocity)

        intercept(module, around, self._local, self._thread)


def _refuse_uneven_groups(module: Any, made: ForwardPass) -> None:
    """diffusers' context parallelism deals out tokens evenly and pads none."""
    config = getattr(getattr(module, "_parallel_config", None), "context_parallel_config", None)
    if config is None or made.bound is None or getattr(config, "ulysses_anything", False):
        return
    group = (getattr(config, "ulysses_degree", None) or 1) * (getattr(config, "ring_degree", None) or 1)
    if made.sequence_length % group:
        raise HalfframeError(
            f"the {made.step.expert}-noise expert computes {made.bound.count} of {made.step.num_frames} latent frames, "
            f"{made.sequence_length} tokens, which context parallelism cannot deal out evenly to {group} devices; use "
            f"another stride, or a size whose tokens per frame are a multiple of {group}."
        )


def unwrapped(module: Any) -> Any:
    """The module in the wrapper that ``torch.compile`` makes, or `module` itself."""
    return getattr(module, "_orig_mod", module)


def _serve_noise(owner: Any, run: SamplingRun, local: Patches) -> None:
    """Have the pipeline start from the run's latents: `owner` prepares its own, and those are exchanged."""
    original = owner.prepare_latents

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

    local.set(owner, "prepare_latents", StandIn(original, prepare_latents))


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


def _has_hooks(expert: Any) -> bool:
    """Whether diffusers' hooks are on any part of `expert`; its caches are such, and so is its group offloading."""
    for module in expert.modules():  # a loop, because an expert has hundreds
        registry = vars(module).get("_diffusers_hook")
        if registry is not None and registry.hooks:
            return True
    return False
