"""Hook plugins: found by entry point or given for one block; whatever goes wrong is told by the plugin's name."""

from __future__ import annotations

from collections.abc import Iterable
from importlib import metadata
from typing import cast

import pluggy

from halfframe.errors import PluginError
from halfframe.plugins.spec import PROJECT_NAME, HookSpecs

__all__ = ["HOOK_GROUP", "distribution_of", "entries", "hook_manager", "load"]

HOOK_GROUP = "halfframe"


def hook_manager(plugins: Iterable[object] = (), *, installed: bool = True) -> pluggy.PluginManager:
    """A plugin manager with our hook set, every `installed` hook plugin, and `plugins` for this block.

    Raises:
        PluginError: a plugin cannot be imported, is given twice, or implements a hook that does not exist.
    """
    manager = pluggy.PluginManager(PROJECT_NAME)
    manager.add_hookspecs(HookSpecs)
    for entry in entries(HOOK_GROUP) if installed else ():
        _register(manager, load(entry), f"{entry.name} ({distribution_of(entry)[0]})")
    for number, plugin in enumerate(plugins):
        _register(manager, plugin, f"{getattr(plugin, '__name__', type(plugin).__name__)} (plugins[{number}])")
    return manager


def entries(group: str) -> tuple[metadata.EntryPoint, ...]:
    """The installed entry points of `group`."""
    return tuple(metadata.entry_points(group=group))


def distribution_of(entry: metadata.EntryPoint) -> tuple[str, str]:
    """Name and version of the package that installed it."""
    return ("unknown", "unknown") if entry.dist is None else (entry.dist.name, entry.dist.version)


def load(entry: metadata.EntryPoint) -> object:
    """Import what an entry point names.

    Raises:
        PluginError: that fails.
    """
    try:
        return cast(object, entry.load())
    except (Exception, SystemExit) as error:
        name, version = distribution_of(entry)
        raise PluginError(
            f"plugin {entry.name!r} ({entry.value} of {name} {version}) cannot be imported: "
            f"{type(error).__name__}: {error}. Mend or uninstall {name}."
        ) from error


def _register(manager: pluggy.PluginManager, plugin: object, name: str) -> None:
    if isinstance(plugin, type):
        raise PluginError(f"plugin {name} is a class; give an instance, or a module with hook functions.")
    if manager.is_registered(plugin):
        raise PluginError(f"plugin {name} is registered already, as {manager.get_name(plugin)}; give it once.")
    try:
        manager.register(plugin, name=name)
        manager.check_pending()
    except (ValueError, pluggy.PluginValidationError) as error:
        hooks = ", ".join(key for key in vars(HookSpecs) if key.startswith("halfframe_"))
        raise PluginError(f"plugin {name} cannot be registered: {error}. The hooks are {hooks}.") from error
    if not manager.get_hookcallers(plugin):
        raise PluginError(
            f"plugin {name} implements no hook; mark its functions with @halfframe.hookimpl "
            "(a strategy goes to `strategy=`, not to `plugins=`)."
        )
