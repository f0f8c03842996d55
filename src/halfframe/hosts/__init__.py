"""Hosts: the pipelines that halfframe can serve, one adapter each, found by what a pipeline has, not by its class."""

from __future__ import annotations

from collections.abc import Sequence

import pluggy

from halfframe.errors import UnsupportedPipelineError
from halfframe.hookspecs import hookimpl
from halfframe.hosts.base import HostAdapter, HostDiagnosis, StartRun, patch_solver
from halfframe.hosts.diffusers_wan import DiffusersWan
from halfframe.hosts.wan_official import WanOfficial

__all__ = ["BuiltinHosts", "HostAdapter", "HostDiagnosis", "StartRun", "find_host", "installed_hosts", "patch_solver"]


class BuiltinHosts:
    """The hosts that come with halfframe, registered as any plugin's are."""

    @hookimpl(trylast=True)
    def halfframe_hosts(self) -> Sequence[HostAdapter]:
        """The built-in adapters."""
        return (WanOfficial(), DiffusersWan())


def installed_hosts(manager: pluggy.PluginManager) -> tuple[HostAdapter, ...]:
    """Every adapter that `manager`'s plugins bring, third parties' first."""
    return tuple(adapter for adapters in manager.hook.halfframe_hosts() for adapter in adapters)


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
                raise UnsupportedPipelineError(f"{type(pipe).__name__} cannot be halved: {reason}")
            return adapter
    raise UnsupportedPipelineError(
        f"{type(pipe).__name__} is no pipeline that halfframe knows; needed: "
        + " or ".join(adapter.serves for adapter in adapters)
        + ". Pass the pipeline object itself, as it was built, not a model or a wrapper."
    )
