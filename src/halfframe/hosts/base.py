"""What a host adapter is, and the one wrapper that every host's scheduler gets."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from halfframe.hosts.patching import Patches
from halfframe.sampling.host import HostFacts
from halfframe.sampling.run import Coming, SamplingRun

__all__ = ["HostAdapter", "HostDiagnosis", "Serve", "patch_scheduler"]

Serve = Callable[[HostFacts, Callable[[SamplingRun, Patches], Any]], Any]
"""Serves a run: ``serve(facts, body)`` calls ``body(run, patches)``, which runs the host's loop, and returns its
result.

The patches are undone when the body ends. The report is filed if it ends normally.
"""


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

    def attach(self, pipe: Any, patches: Patches, serve: Serve) -> None:
        """Patch `pipe` so that each of its runs is served by `serve` and goes through the run's seams."""
        ...


def patch_scheduler(
    scheduler: Any, run: SamplingRun, patches: Patches, after: Callable[[Coming, Coming], None] = lambda *_: None
) -> None:
    """Put `run` in front of ``scheduler.step``, until `patches` are undone or the run has another scheduler.

    `after` is called after each step, with `SamplingRun.coming` from before it and from after it.
    """

    def step(original: Any, obj: Any, model_output: Any, timestep: Any, sample: Any, *args: Any, **kwargs: Any) -> Any:
        if obj is not run.scheduler:
            return original(model_output, timestep, sample, *args, **kwargs)
        before = run.coming
        result = run.scheduler_step(original, model_output, timestep, sample, *args, **kwargs)
        after(before, run.coming)
        return result

    patches.methods(scheduler, {"step": step})
    run.attach(scheduler)
