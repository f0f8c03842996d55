"""Where the official package's experts are: its own moves between host and device, served by
`halfframe.offload.prefetch`.

Upstream moves an expert with ``to('cpu')``, ``cpu()`` and ``to(self.device)``, and asks ``next(model.parameters())``
where it is. For a run those methods are patched on the two modules; any other use of them is the modules' own.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from types import MethodType
from typing import Any

import torch

from halfframe.hosts.patching import Patches
from halfframe.offload.accelerator import Accelerator, CudaAccelerator
from halfframe.offload.prefetch import Prefetch
from halfframe.offload.residency import why_not
from halfframe.sampling.host import PrefetchOutcome
from halfframe.sampling.run import SamplingRun
from halfframe.sampling.strategy import Expert, Step

__all__ = ["ExpertPlacement"]


def _accelerator_of(device: torch.device) -> Accelerator | None:
    return CudaAccelerator(device) if device.type == "cuda" else None


class ExpertPlacement:
    """A pipeline's `Prefetch`, from its first run that asks for one until `close`.

    Args:
        experts: attribute names of its experts.
    """

    def __init__(self, experts: Mapping[str, Expert]) -> None:
        self._names = dict(experts)
        self._prefetch: Prefetch | None = None
        self._active = False
        self._serving = False
        self._closed = False

    @contextmanager
    def serve(self, pipe: Any, run: SamplingRun, local: Patches) -> Iterator[None]:
        """Serve `run`, if it asks for it; tells it the outcome."""
        if not run.wants_prefetch:
            yield
            return
        prefetch, reason = self._ready(pipe)
        if prefetch is None:
            run.prefetched = PrefetchOutcome(f"off: {reason}", warn=True)
            yield
            return
        self._serving = self._active = True
        failed = True
        try:
            prefetch.begin()
            for name, expert in self._names.items():
                _patch_moves(getattr(pipe, name), expert, prefetch, local)
            yield
            failed = False
        finally:
            self._active = False
            try:
                run.prefetched = prefetch.end(failed=failed)
            finally:
                self._serving = False
                if self._closed:
                    self._release()

    def after_forward(self, step: Step, run: SamplingRun) -> None:
        """A forward pass of an expert was launched."""
        if self._active and self._prefetch is not None:
            self._prefetch.after_forward(step, run.at_its_largest)

    def close(self) -> None:
        """Let go of everything; while a run goes on, once it ends."""
        self._closed = True
        if not self._serving:
            self._release()

    def _ready(self, pipe: Any) -> tuple[Prefetch | None, str]:
        modules = {expert: getattr(pipe, name) for name, expert in self._names.items()}
        if self._prefetch is not None and not self._prefetch.serves(modules):
            self._release()
        reasons = (
            f"the {expert}-noise expert's {why}" for expert, module in modules.items() if (why := why_not(module))
        )
        reason = next(reasons, "")
        if not reason and self._prefetch is None:
            accelerator = _accelerator_of(torch.device(pipe.device))
            if accelerator is None:
                reason = f"the pipeline is on {pipe.device}, so there is no device memory to bring experts into"
            else:
                self._prefetch = Prefetch(modules, accelerator)
        return (None if reason else self._prefetch), reason

    def _release(self) -> None:
        prefetch, self._prefetch = self._prefetch, None
        if prefetch is not None:
            prefetch.close()


def _patch_moves(module: Any, expert: Expert, prefetch: Prefetch, local: Patches) -> None:
    original_to, original_cpu = module.to, module.cpu

    def to(self: Any, *args: Any, **kwargs: Any) -> Any:
        if self is not module:  # a copy that was made meanwhile
            return type(self).to(self, *args, **kwargs)
        device = _only_device(args, kwargs) if local.active else None
        if device is not None and device.type == "cpu" and prefetch.leave(expert):
            return self
        if device == prefetch.accelerator.device and prefetch.enter(expert):
            return self
        return original_to(*args, **kwargs)

    def cpu(self: Any) -> Any:
        if self is not module:
            return type(self).cpu(self)
        return self if local.active and prefetch.leave(expert) else original_cpu()

    # Bound methods, so that a deep copy of the module gets them bound to itself.
    local.set(module, "to", MethodType(to, module))
    local.set(module, "cpu", MethodType(cpu, module))


def _only_device(args: tuple[Any, ...], kwargs: dict[str, Any]) -> torch.device | None:
    """The device that `to` was asked for, if it was asked for that alone."""
    if len(args) != 1 or kwargs or not isinstance(args[0], str | torch.device):
        return None
    return torch.device(args[0])
