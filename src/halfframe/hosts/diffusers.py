"""diffusers: ``WanPipeline`` and ``WanImageToVideoPipeline`` with the two experts of A14B.

Their loop reaches everything through the pipeline: ``prepare_latents``, ``scheduler.step`` and the two transformers.
Each is patched for one run. ``__call__`` is looked up on the type, so the instance is given a subclass of its class.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from halfframe.hosts.base import HostDiagnosis, Serve
from halfframe.hosts.diffusers_experts import (
    config_value,
    experts_refusal,
    facts_of,
    goes_with_frames,
    lead_calls,
)
from halfframe.hosts.diffusers_seams import EXPERTS, Routes
from halfframe.hosts.patching import Patches
from halfframe.hosts.source import class_methods, package_version
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
        return has_parts and config_value(pipe, "boundary_ratio", _ABSENT) is not _ABSENT

    def refusal(self, pipe: Any) -> str | None:
        """No expert switch (TI2V-5B, Wan2.1, one module as both experts), or inputs that cannot be cut (VACE)."""
        if config_value(pipe, "expand_timesteps", False):
            return (
                "its config has expand_timesteps, as TI2V-5B, where one transformer serves every timestep, so there is "
                "no expert switch at which the clip could be brought back to full length. Use T2V-A14B or I2V-A14B."
            )
        return experts_refusal(pipe)

    def attach(self, pipe: Any, patches: Patches, serve: Serve) -> None:
        """Have calls of `pipe` go through a run's seams, and follow parts that are exchanged during one."""
        lead_calls(self, pipe, patches, serve, self._facts, _route)

    def _facts(self, pipe: Any, *args: Any, **kwargs: Any) -> HostFacts:
        arguments = _arguments(type(pipe).__call__, pipe, *args, **kwargs)
        # The last frame is conditioned on an image of its own, which a skipped frame would never show the expert.
        conditioning = (-1,) if arguments.get("last_image") is not None else ()
        return facts_of(self.name, pipe, arguments.get("max_sequence_length", 512), conditioning)


class _StepHeads(Routes):
    """Routes that are told by the loop itself where a step begins; callbacks come after the scheduler's step."""

    def replaced(self, name: str, value: Any) -> None:
        """Also ``_current_timestep``, which is set at the head of each step."""
        if name == "_current_timestep":
            self.mark(value is not None)
        super().replaced(name, value)


def _route(pipe: Any, run: SamplingRun, local: Patches) -> Routes:
    return _StepHeads(pipe, run, local, [pipe])


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
    per_frame = [name for name in keywords if isinstance(name, str) and goes_with_frames(name)]
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


def _arguments(function: Callable[..., Any], *args: Any, **kwargs: Any) -> Mapping[str, Any]:
    """What `function` would be called with, defaults included; nothing if the call is a wrong one."""
    try:
        bound = inspect.signature(function).bind(*args, **kwargs)
    except TypeError:
        return {}  # the host says better what is wrong
    bound.apply_defaults()
    return bound.arguments
