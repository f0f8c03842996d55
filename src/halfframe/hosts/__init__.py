"""Hosts: the pipelines that halfframe can serve, one adapter each, found by what a pipeline has, not by its class."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pluggy

from halfframe.errors import PluginError, UnsupportedPipelineError
from halfframe.hosts.base import HostAdapter, HostDiagnosis, Serve, patch_scheduler
from halfframe.hosts.diffusers import DiffusersWan
from halfframe.hosts.diffusers_modular import DiffusersModularWan
from halfframe.hosts.wan import WanOfficial

__all__ = ["HostAdapter", "HostDiagnosis", "Serve", "find_host", "installed_hosts", "patch_scheduler"]


def installed_hosts(manager: pluggy.PluginManager) -> Sequence[HostAdapter]:
    """Every adapter: those that `manager`'s plugins bring, then the built-in ones."""
    return [*_brought(manager), WanOfficial(), DiffusersWan(), DiffusersModularWan()]


def _brought(manager: pluggy.PluginManager) -> list[HostAdapter]:
    plugins = [hook.plugin for hook in manager.hook.halfframe_hosts.get_hookimpls()]
    found: list[HostAdapter] = []
    for plugin in reversed(plugins):  # one by one, so that whoever fails can be named
        name = manager.get_name(plugin)
        caller = manager.subset_hook_caller("halfframe_hosts", [other for other in plugins if other is not plugin])
        try:
            found += [_adapter(adapter, name) for adapters in caller() for adapter in adapters]
        except PluginError:
            raise
        except (Exception, SystemExit) as error:
            raise PluginError(
                f"plugin {name} failed in halfframe_hosts: {type(error).__name__}: {error}; needed: a list of host "
                "adapters. Mend or uninstall it."
            ) from error
    return found


def _adapter(value: Any, name: str | None) -> HostAdapter:
    needed = ("name", "serves", "recognises", "refusal", "attach")
    missing = [part for part in needed if not hasattr(value, part)]
    if missing or isinstance(value, type):
        raise PluginError(
            f"plugin {name} gave a {type(value).__name__} in halfframe_hosts; needed: a list of host adapters, objects "
            f"with {', '.join(needed)}."
        )
    adapter: HostAdapter = value
    return adapter


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
