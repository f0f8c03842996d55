"""The hook set: the seams of a sampling run, as a plugin may implement them (pluggy project name ``halfframe``).

A plugin is any object or module whose functions carry `halfframe.hookimpl`. It is picked up from the entry-point group
``halfframe``, or given for one block with ``halfframe.enabled(pipe, plugins=[plugin])``.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import pluggy

if TYPE_CHECKING:
    from collections.abc import Sequence

    from torch import Tensor

    from halfframe.hosts.base import HostAdapter
    from halfframe.report.report import Report
    from halfframe.sampling.events import Boundary, ExpertCall
    from halfframe.sampling.strategy import Allocation, Step

__all__ = ["HookSpecs", "hookimpl", "hookspec"]

PROJECT_NAME = "halfframe"
hookspec = pluggy.HookspecMarker(PROJECT_NAME)
hookimpl = pluggy.HookimplMarker(PROJECT_NAME)


class HookSpecs:
    """The hooks; docs/hooks.md has one complete example for each."""

    @hookspec
    def halfframe_hosts(self) -> Sequence[HostAdapter]:  # type: ignore[empty-body]
        """Further pipelines to serve: host adapters, asked before the built-in ones."""

    @hookspec(firstresult=True)
    def halfframe_allocate(self, allocation: Allocation) -> Tensor | None:
        """Swap the latent allocator: return the latents to start from, of ``allocation.shape``, or None to pass.

        Called once per run, where the host draws its noise. The first result wins; the strategy answers last.
        """

    @hookspec
    def halfframe_expert_call(self, call: ExpertCall) -> None:
        """See a forward pass of an expert, right after it: step, frame map, sequence length, input and prediction."""

    @hookspec
    def halfframe_step(self, step: Step, latents: Tensor, velocity: Tensor) -> None:
        """See a step's prediction after guidance, before the scheduler takes it.

        `latents` are the full-length sample ``(..., F, H, W)`` and `velocity` is the model output that the scheduler
        gets, of the same shape, so the clip that the step predicts is ``latents - step.sigma * velocity``.
        """

    @hookspec
    def halfframe_boundary(self, boundary: Boundary) -> None:
        """Act at the expert switch, once per run, when the low-noise expert is in place and has not run yet.

        The strategy acts first, so ``boundary.latents`` is the full clip already. Assign to it to replace the latents;
        the scheduler then starts afresh, because its history belongs to the latents it had.
        """

    @hookspec
    def halfframe_latents(self, latents: Tensor) -> None:
        """See the final latents ``(..., F, H, W)``, after the last step and before the host decodes them."""

    @hookspec
    def halfframe_report(self, report: Report) -> None:
        """Receive the report of a finished run."""
