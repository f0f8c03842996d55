"""What a host adapter is, and the one wrapper that every host's solver gets."""

from __future__ import annotations

import copyreg
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any, Protocol

from halfframe.patching import Patches
from halfframe.run import SamplingRun
from halfframe.seams import HostFacts

__all__ = ["HostAdapter", "HostDiagnosis", "StartRun", "patch_solver", "same_named_subclass"]

StartRun = Callable[[HostFacts], AbstractContextManager[SamplingRun]]
"""Starts a run; leaving it normally finishes the run and files its report, leaving it by an exception drops it."""


@dataclass(frozen=True, slots=True)
class HostDiagnosis:
    """What an adapter found of one pipeline class, by reading and not importing it.

    Attributes:
        pipeline: the class, ``module.Class``.
        package: the distribution that brings it.
        version: its version; None if it is not installed.
        seams: what halfframe needs in it -> whether it is there.
        verdict: ``"served"``, or why not.
    """

    pipeline: str
    package: str
    version: str | None
    seams: dict[str, bool]
    verdict: str


class HostAdapter(Protocol):
    """Puts halfframe between a pipeline's sampling loop and its parts. Knows its host, nothing of strategies.

    Attributes:
        name: for reports and messages.
        serves: what it serves, for the message to somebody who passed something else.
    """

    name: str
    serves: str

    def recognises(self, pipe: object) -> bool:
        """Whether `pipe` is of this host's kind, servable or not."""
        ...

    def refusal(self, pipe: Any) -> str | None:
        """Why a recognised `pipe` cannot be served, with what to do about it; None if it can."""
        ...

    def diagnose(self) -> Sequence[HostDiagnosis]:
        """What of this host is installed here, for `halfframe.doctor`; an adapter may do without."""
        ...

    def preload_refusal(self, pipe: Any) -> str | None:
        """Why experts of `pipe` cannot be preloaded; None if they can. An adapter may do without, and then cannot.

        A run that `SamplingRun.wants_preload` is told the outcome with `SamplingRun.preloaded`.
        """
        ...

    def attach(self, pipe: Any, patches: Patches, start: StartRun) -> None:
        """Patch `pipe` so that each of its runs is started with `start` and goes through the run's seams."""
        ...


def _new_instance(cls: Any, *arguments: Any) -> Any:
    return cls.__new__(cls, *arguments)


def same_named_subclass(cls: type, methods: dict[str, Any]) -> type:
    """A subclass of `cls` that shows itself as `cls`, with `methods`; its instances are copied and pickled as `cls`."""

    plain: Any = cls

    def reduce_ex(obj: Any, protocol: Any) -> Any:
        reduced = plain.__reduce_ex__(obj, protocol)
        if isinstance(reduced, str) or reduced[0] is not copyreg.__newobj__:  # type: ignore[attr-defined]
            return reduced
        _, (_, *arguments), *rest = reduced
        return (_new_instance, (plain, *arguments), *rest)  # pickle takes __newobj__ with the object's own class only

    metaclass: Any = type(cls)
    shown = {name: getattr(cls, name) for name in ("__doc__", "__module__", "__qualname__")}
    result: type = metaclass(cls.__name__, (cls,), {**shown, "__reduce_ex__": reduce_ex, **methods})
    return result


def patch_solver(solver: Any, run: SamplingRun, patches: Patches) -> None:
    """Put `run` in front of ``solver.step``, until `patches` are undone."""
    original = solver.step

    def step(model_output: Any, timestep: Any, sample: Any, *args: Any, **kwargs: Any) -> Any:
        return run.solver_step(original, model_output, timestep, sample, *args, **kwargs)

    patches.set(solver, "step", step)
    run.attach_solver(solver)
