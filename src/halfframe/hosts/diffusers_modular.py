"""diffusers' Modular pipelines of Wan2.2: ``Wan22Blocks`` and ``Wan22Image2VideoBlocks``, and what is built of them.

Such a pipeline is its parts and a tree of blocks, which are handed the pipeline and take the parts from it. One block
prepares the latents, one calls the experts, as often as its guider asks, one calls ``scheduler.step``.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from torch import Tensor

from halfframe.errors import OptionError
from halfframe.hosts.base import HostDiagnosis, Serve
from halfframe.hosts.diffusers_experts import experts_refusal, facts_of, lead_calls
from halfframe.hosts.diffusers_seams import Routes
from halfframe.hosts.patching import Patches
from halfframe.hosts.source import class_methods, package_version
from halfframe.sampling import frames
from halfframe.sampling.host import HostFacts
from halfframe.sampling.run import SamplingRun

__all__ = ["DiffusersModularWan"]

_LOW_EXPERT = "transformer_2"
_PLAIN_GUIDER = "ClassifierFreeGuidance"
_MASK_CHANNELS = 4  # of an image condition: which video frames of a latent frame are given


class DiffusersModularWan:
    """Adapter for modular pipelines; needs ``transformer``, ``transformer_2``, ``config.boundary_ratio`` and the blocks
    that use them.
    """

    name = "diffusers-modular"
    serves = "a diffusers pipeline of Wan22Blocks or Wan22Image2VideoBlocks"

    def diagnose(self) -> Sequence[HostDiagnosis]:
        """The package's blocks for two experts, as far as their source tells."""
        modules = {"modular_blocks_wan22": "Wan22Blocks", "modular_blocks_wan22_i2v": "Wan22Image2VideoBlocks"}
        return [_diagnose(module, cls) for module, cls in modules.items()]

    def recognises(self, pipe: object) -> bool:
        """Any modular pipeline: a tree of blocks, and parts that can be updated."""
        return hasattr(_root(pipe), "sub_blocks") and hasattr(pipe, "update_components")

    def refusal(self, pipe: Any) -> str | None:
        """Experts as in `experts_refusal`; blocks that are not there, or more callers of experts than can be told."""
        reason = experts_refusal(pipe)
        if reason:
            return reason
        if not _latents_blocks(pipe) or not _denoisers(pipe):
            missing = "calls transformer and transformer_2" if _latents_blocks(pipe) else "has prepare_latents"
            return (
                f"none of its blocks {missing}, so halfframe does not know its sampling loop. Use Wan22Blocks or "
                "Wan22Image2VideoBlocks, or blocks that keep their denoise and prepare_latents steps."
            )
        for block in _blocks(_root(pipe)):
            callers = [name for name, child in block.sub_blocks.items() if _calls_experts(child)]
            if hasattr(block, "loop_step") and len(callers) > 1:
                return (
                    f"{len(callers)} blocks of one loop call the experts, {' and '.join(callers)}; which call is the "
                    "step's own cannot be told. Keep one, or put the other outside of the loop."
                )
        return None

    def attach(self, pipe: Any, patches: Patches, serve: Serve) -> None:
        """Have calls of `pipe` go through a run's seams, and follow parts that are exchanged during one."""
        lead_calls(self, pipe, patches, serve, self._facts, _route)

    def _facts(self, pipe: Any, *args: Any, **kwargs: Any) -> HostFacts:
        inputs = _inputs(pipe, *args, **kwargs)
        return facts_of(self.name, pipe, inputs.get("max_sequence_length", 512), _conditioning(inputs))


def _route(pipe: Any, run: SamplingRun, local: Patches) -> Routes:
    _refuse_guiders(pipe, run)
    route = Routes(pipe, run, local, _latents_blocks(pipe))
    _mark_steps(pipe, route, local)
    return route


def _root(pipe: Any) -> Any:
    """The pipeline's own blocks; ``pipe.blocks`` is a copy of them."""
    return vars(pipe).get("_blocks") if hasattr(pipe, "__dict__") else None


def _blocks(root: Any) -> Iterator[Any]:
    """`root` and every block in it, at any depth."""
    yield root
    for block in root.sub_blocks.values():
        yield from _blocks(block)


def _latents_blocks(pipe: Any) -> list[Any]:
    return [block for block in _blocks(_root(pipe)) if hasattr(block, "prepare_latents")]


def _denoisers(pipe: Any) -> list[Any]:
    return [block for block in _blocks(_root(pipe)) if not block.sub_blocks and _calls_experts(block)]


def _calls_experts(block: Any) -> bool:
    return any(component.name == _LOW_EXPERT for component in block.expected_components)


def _mark_steps(pipe: Any, route: Routes, local: Patches) -> None:
    """Have `route` know the denoisers' calls of experts from those of other blocks."""
    route.mark(False)

    def denoise(original: Any, _: Any, *args: Any, **kwargs: Any) -> Any:
        components = args[0] if args else kwargs.get("components")
        route.mark(components is pipe)
        try:
            return original(*args, **kwargs)
        finally:
            route.mark(False)

    for block in _denoisers(pipe):
        local.methods(block, {"__call__": denoise})


def _refuse_guiders(pipe: Any, run: SamplingRun) -> None:
    """Refuse to leave out unconditional passes where something else than ``u + s (c - u)`` is made of them."""
    for name in ("guider", "guider_2"):
        kind = type(getattr(pipe, name, None)).__name__
        if run.guidance_plan and kind != _PLAIN_GUIDER:
            raise OptionError(
                f"its {name} is a {kind}, for which no stand-in for the unconditional pass is known; leave out "
                f"guidance= and recipes with +cond or +delta, or use {_PLAIN_GUIDER}."
            )


def _inputs(pipe: Any, state: Any = None, output: Any = None, **kwargs: Any) -> Mapping[str, Any]:
    """What the blocks will find in their state: what an earlier call left there, the call's own, defaults."""
    defaults = {given.name: given.default for given in _root(pipe).inputs if given.name is not None}
    return {**defaults, **(getattr(state, "values", None) or {}), **kwargs}


def _conditioning(inputs: Mapping[str, Any]) -> tuple[int, ...]:
    """The last frame, if it is given an image of its own; a condition that was made before says so in its mask."""
    condition = inputs.get("image_condition_latents")
    shown = isinstance(condition, Tensor) and bool(condition.select(frames.TIME_DIM, -1)[:, :_MASK_CHANNELS].any())
    return (-1,) if shown or inputs.get("last_image") is not None else ()


def _diagnose(module: str, cls: str) -> HostDiagnosis:
    package, version = package_version("diffusers")
    folder = "modular_pipelines.wan"
    there = bool(class_methods("diffusers", f"{folder}.{module}", cls))
    noise = class_methods("diffusers", f"{folder}.before_denoise", "WanPrepareLatentsStep")
    denoiser = class_methods("diffusers", f"{folder}.denoise", "Wan22LoopDenoiser").get("__call__")
    stepper = class_methods("diffusers", f"{folder}.denoise", "WanLoopAfterDenoiser").get("__call__")
    seams = {
        "prepare_latents": "prepare_latents" in noise,
        "two experts": denoiser is not None and {"transformer", _LOW_EXPERT} <= set(denoiser.co_names),
        "scheduler.step": stepper is not None and {"scheduler", "step"} <= set(stepper.co_names),
    }
    if version is None:
        verdict = "not installed"
    elif not there:
        verdict = f"refused: {version} has no such class"
    elif not all(seams.values()):
        verdict = "refused: its blocks are not the sampling loop that halfframe knows"
    else:
        verdict = "served"
    return HostDiagnosis(f"diffusers.{cls}", package, version, seams if there else {}, verdict)
