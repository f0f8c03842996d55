"""Hosts: the pipelines that halfframe can serve, one adapter each, found by what a pipeline has, not by its class."""

from __future__ import annotations

from collections.abc import Sequence

import pluggy

from halfframe.errors import UnsupportedPipelineError
from halfframe.hosts.base import HostAdapter, HostDiagnosis, Serve, patch_scheduler
from halfframe.hosts.diffusers import DiffusersWan
from halfframe.hosts.wan import WanOfficial

__all__ = ["HostAdapter", "HostDiagnosis", "Serve", "find_host", "installed_hosts", "patch_scheduler"]


def installed_hosts(manager: pluggy.PluginManager) -> Sequence[HostAdapter]:
    """Every adapter: those that `manager`'s plugins bring, then the built-in ones."""
    brought = [adapter for adapters in manager.hook.halfframe_hosts() for adapter in adapters]
    return [*brought, WanOfficial(), DiffusersWan()]


def find_host(pipe: object, manager: pluggy.PluginManager) -> HostAdapter:
    """The adapter that serves `pipe`.

    Raises:
        UnsupportedPipelineError: no adapter recognises it, or the one that does refuses it; the message says why.
    """
    adapters = installed_hosts(manager)
    for adapter in adapters:
        if adapter.recognises(pipe):
            reason = adapter.refusal(pipe)
            if reason:
                raise UnsupportedPipelineError(f"{type(pipe).__name__} cannot be made faster: {reason}")
            return adapter
    if isinstance(pipe, str):
        raise UnsupportedPipelineError(f"{pipe!r} is a name; load the pipeline first, then pass the pipeline object.")
    raise UnsupportedPipelineError(
        f"{type(pipe).__name__} is no pipeline that halfframe knows; needed: "
        + " or ".join(adapter.serves for adapter in adapters)
        + ". Pass the pipeline object itself, as it was built, not a model or a wrapper."
    )
