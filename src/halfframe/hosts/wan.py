"""The official `wan` package: ``WanT2V`` of T2V-A14B and ``WanI2V`` of I2V-A14B.

Their ``generate`` is one function that draws its noise and builds its scheduler from module globals and asks
``self._prepare_model_for_timestep`` for the expert of each step. The module is left alone: for each run the function's
code is bound to a copy of its globals in which ``torch`` hands out our noise and scheduler classes report to the run.
"""

from __future__ import annotations

import functools
import threading
from collections.abc import Sequence
from types import CodeType, FunctionType, ModuleType
from typing import Any

import torch
from torch import Tensor

from halfframe.errors import HalfframeError
from halfframe.hosts.base import HostDiagnosis, Serve, patch_scheduler
from halfframe.hosts.patching import Patches, StandIn
from halfframe.hosts.rope import OfficialPositions
from halfframe.hosts.source import class_methods, package_version
from halfframe.report.cost import ExpertShape
from halfframe.sampling.host import ForwardPass, HostFacts, NoiseSource
from halfframe.sampling.run import SamplingRun
from halfframe.sampling.strategy import Expert

__all__ = ["WanOfficial"]

_SEAMS = ("randn", "_prepare_model_for_timestep", "step")
_EXPERTS: dict[str, Expert] = {"high_noise_model": "high", "low_noise_model": "low"}


class WanOfficial:
    """Adapter for pipelines of the official package; needs the two experts, ``boundary``, and a known ``generate``."""

    name = "wan"
    serves = "a wan.text2video.WanT2V or wan.image2video.WanI2V"

    def recognises(self, pipe: object) -> bool:
        """Anything with ``generate``, ``num_train_timesteps`` and ``vae``: the mark of the package's pipelines."""
        return all(hasattr(pipe, name) for name in ("generate", "num_train_timesteps", "vae"))

    def refusal(self, pipe: Any) -> str | None:
        """No expert switch (TI2V-5B, S2V, Animate, one module as both experts), or an unknown sampling loop."""
        missing = [name for name in (*_EXPERTS, "boundary") if getattr(pipe, name, None) is None]
        if missing:
            return (
                f"it has no {' and no '.join(missing)}, so there is no expert switch at which the clip could be "
                "brought back to full length. Use T2V-A14B or I2V-A14B."
            )
        if pipe.high_noise_model is pipe.low_noise_model:
            return (
                "one module serves as both experts, so there is no expert switch. Load both experts of the A14B model."
            )
        time_patch, *_ = pipe.patch_size
        if time_patch != 1:
            return f"its patch_size {tuple(pipe.patch_size)} spans several latent frames; needed: (1, h, w)."
        return _loop_refusal(pipe)

    def diagnose(self) -> Sequence[HostDiagnosis]:
        """The package's pipelines, as far as their source tells."""
        modules = {"text2video": "WanT2V", "image2video": "WanI2V", "textimage2video": "WanTI2V"}
        return [_diagnose(module, cls) for module, cls in modules.items()]

    def attach(self, pipe: Any, patches: Patches, serve: Serve) -> None:
        """Have ``pipe.generate`` run the same code through a run's seams."""
        loop: FunctionType = type(pipe).generate

        def generate(_: Any, pipe: Any, *args: Any, **kwargs: Any) -> Any:
            def body(run: SamplingRun, local: Patches) -> Any:
                _route_experts(pipe, run, local)
                return _overlay(loop, run, local)(pipe, *args, **kwargs)

            return serve(self._facts(pipe), body)

        patches.methods(pipe, {"generate": generate})

    def _facts(self, pipe: Any) -> HostFacts:
        patch_size, expert = tuple(pipe.patch_size), pipe.high_noise_model
        return HostFacts(
            name=self.name,
            boundary=pipe.boundary * pipe.num_train_timesteps,
            patch_size=(patch_size[0], patch_size[1], patch_size[2]),
            temporal_stride=pipe.vae_stride[0],
            group_size=pipe.sp_size,
            expert_shape=_expert_shape(expert),
            # Image-to-video has its conditions in further channels.
            conditioned=getattr(expert, "in_dim", None) != getattr(expert, "out_dim", None),
        )


def _loop_refusal(pipe: Any) -> str | None:
    loop = getattr(pipe.generate, "__func__", None)
    if "generate" in vars(pipe) or not isinstance(loop, FunctionType):
        return "its `generate` was replaced on the instance; leave what replaced it before enabling halfframe."
    code: CodeType = loop.__code__
    missing = [name for name in _SEAMS if name not in code.co_names]
    if missing or not _scheduler_names(loop):
        lacks = ", ".join(missing) or "a scheduler class"
        return (
            f"{loop.__qualname__} of {loop.__module__} is not the sampling loop that halfframe knows: it does not use "
            f"{lacks}. Enable the pipeline class whose own `generate` samples, from wan22 2.2.0 to 2.2.11 or the "
            "official repository."
        )
    return None


def _diagnose(module: str, cls: str) -> HostDiagnosis:
    package, version = package_version("wan")
    methods = class_methods("wan", module, cls)
    init, loop = methods.get("__init__"), methods.get("generate")
    seams = {
        "two experts": init is not None and set(_EXPERTS) <= set(init.co_names),
        **{f"{name} in generate": loop is not None and name in loop.co_names for name in _SEAMS},
    }
    if version is None:
        verdict = "not installed"
    elif not methods:
        verdict = f"refused: {version} has no such class"
    elif not seams["two experts"]:
        verdict = "refused: one model serves every timestep, so there is no expert switch"
    elif not all(seams.values()):
        verdict = "refused: its generate is not the sampling loop that halfframe knows"
    else:
        verdict = "served"
    return HostDiagnosis(f"wan.{module}.{cls}", package, version, seams if methods else {}, verdict)


def _scheduler_names(loop: FunctionType) -> list[str]:
    """Global names in `loop` that are scheduler classes, by what they can do."""
    found = ((name, loop.__globals__.get(name)) for name in loop.__code__.co_names)
    return [
        name
        for name, value in found
        if isinstance(value, type) and hasattr(value, "step") and hasattr(value, "set_timesteps")
    ]


def _overlay(loop: FunctionType, run: SamplingRun, local: Patches) -> FunctionType:
    """`loop` over a copy of its globals, with our noise and schedulers that report to `run`."""
    names: dict[str, Any] = dict(loop.__globals__)
    names["torch"] = _TorchWithNoise(run, names["torch"])
    for name in _scheduler_names(loop):
        names[name] = _reporting(names[name], run, local)
    copy = FunctionType(loop.__code__, names, loop.__name__, loop.__defaults__, loop.__closure__)
    copy.__kwdefaults__ = loop.__kwdefaults__
    return copy


class _TorchWithNoise(ModuleType):
    """The module `torch`, except that the first 4-d ``randn`` of a run is the run's allocation."""

    def __init__(self, run: SamplingRun, module: Any) -> None:
        super().__init__("torch")
        self._run = run
        self._module = module

    def __getattr__(self, name: str) -> Any:
        return getattr(self._module, name)

    def randn(self, *size: Any, **kwargs: Any) -> Tensor:
        shape = tuple(size[0]) if len(size) == 1 and not isinstance(size[0], int) else size
        if self._run.allocated or len(shape) != 4:
            plain: Tensor = self._module.randn(*size, **kwargs)
            return plain
        device = torch.device(kwargs.get("device") or "cpu")
        source = NoiseSource(
            lambda shape: self._module.randn(*shape, **kwargs),
            [kwargs.get("generator") or _default_generator(device)],
            kwargs.get("dtype") or torch.get_default_dtype(),
            device,
        )
        return self._run.allocate(shape, source)


def _default_generator(device: torch.device) -> torch.Generator:
    if device.type == "cuda":
        index = torch.cuda.current_device() if device.index is None else device.index
        return torch.cuda.default_generators[index]
    return torch.default_generator


def _reporting(scheduler_class: type, run: SamplingRun, local: Patches) -> type:
    """A subclass of `scheduler_class` whose instances hand themselves to `run` once built."""

    @functools.wraps(scheduler_class.__init__)  # type: ignore[misc]
    def init(self: Any, *args: Any, **kwargs: Any) -> None:
        scheduler_class.__init__(self, *args, **kwargs)  # type: ignore[misc]
        patch_scheduler(self, run, local)

    return type(
        scheduler_class.__name__, (scheduler_class,), {"__init__": init, "__module__": scheduler_class.__module__}
    )


def _route_experts(pipe: Any, run: SamplingRun, local: Patches) -> None:
    """Have the expert that the pipeline picks for a step called through `run`."""
    original = pipe._prepare_model_for_timestep
    thread = threading.get_ident()

    def prepare(*args: Any, **kwargs: Any) -> Any:
        model = original(*args, **kwargs)
        if not local.active or threading.get_ident() != thread:
            return model
        name = next((name for name in _EXPERTS if model is getattr(pipe, name)), None)
        if name is None:
            raise HalfframeError(
                f"{type(pipe).__name__}._prepare_model_for_timestep returned a {type(model).__name__} that is neither "
                "of the pipeline's two experts; halfframe cannot tell which phase it serves."
            )
        return _RoutedExpert(model, _EXPERTS[name], run)

    local.set(pipe, "_prepare_model_for_timestep", StandIn(original, prepare))


class _RoutedExpert:
    """An expert for one step: called like the model, everything else is the model's. The model itself is untouched."""

    def __init__(self, model: Any, expert: Expert, run: SamplingRun) -> None:
        self._model = model
        self._expert = expert
        self._run = run
        self._rope = OfficialPositions(model)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._model, name)

    def __call__(self, latents: list[Tensor], *args: Any, **kwargs: Any) -> list[Tensor]:
        if len(latents) != 1 or "seq_len" not in kwargs:
            raise HalfframeError(
                f"the expert was called with {len(latents)} clips and keywords {sorted(kwargs)}; needed: one clip and "
                "`seq_len`, as the official sampling loop does. Use a supported version (see the README)."
            )

        def compute(made: ForwardPass) -> Tensor:
            if made.bound is not None:
                kwargs["seq_len"] = made.sequence_length
                if kwargs.get("y") is not None:
                    kwargs["y"] = [made.cut(condition) for condition in kwargs["y"]]
                kwargs["t"] = made.timestep(kwargs["t"])
            with self._rope.at(made.positions) as model:
                prediction: Tensor = model([made.latents], *args, **kwargs)[0]
            return prediction

        return [self._run.forward(self._expert, latents[0], compute)]


def _expert_shape(model: Any) -> ExpertShape | None:
    sizes = [getattr(model, name, None) for name in ("dim", "ffn_dim", "num_layers", "text_len")]
    if not all(isinstance(size, int) for size in sizes):
        return None
    dim, ffn_dim, num_layers, text_len = (int(size) for size in sizes if size is not None)
    return ExpertShape(dim, ffn_dim, num_layers, text_len)
