"""What halfframe finds in this environment: hosts, versions, their seams, plugins, and what would be refused."""

from __future__ import annotations

import dataclasses
import platform
from collections.abc import Sequence
from typing import Any

import torch

from halfframe.errors import HalfframeError, OptionError
from halfframe.hosts import installed_hosts
from halfframe.hosts.base import HostAdapter, HostDiagnosis
from halfframe.hosts.source import package_version
from halfframe.plugins.manager import HOOK_GROUP, hook_manager
from halfframe.plugins.strategies import STRATEGY_GROUP, resolve_strategy, strategies

__all__ = ["Diagnosis", "doctor"]


@dataclasses.dataclass(frozen=True, slots=True)
class Diagnosis:
    """The findings of `doctor`; printing it gives them as text.

    Attributes:
        hosts: one finding per pipeline class that an adapter looked for.
        strategies: name -> ``"ok"`` or what is wrong with it.
        hooks: ``"ok"``, or what is wrong with an installed hook plugin.
    """

    hosts: tuple[HostDiagnosis, ...]
    strategies: dict[str, str]
    hooks: str

    @property
    def sound(self) -> bool:
        """Whether every installed plugin can be used."""
        return self.hooks.startswith("ok") and all(verdict.startswith("ok") for verdict in self.strategies.values())

    def to_dict(self) -> dict[str, Any]:
        """The findings as plain data that `json.dumps` takes."""
        return {
            "hosts": [dataclasses.asdict(host) for host in self.hosts],
            "strategies": self.strategies,
            "hooks": self.hooks,
        }

    def __str__(self) -> str:
        versions = f"halfframe {package_version('halfframe')[1]}, torch {torch.__version__}"
        lines = [f"{versions}, python {platform.python_version()}", "hosts"]
        for host in self.hosts:
            version = host.version or "not installed"
            verdict = "" if host.version is None else f": {host.verdict}"
            lines.append(f"  {host.pipeline:<40} {host.package} {version}{verdict}")
            if not host.verdict.startswith("refused: one"):  # there a missing seam is no fault
                lines += [f"      {seam}: {'found' if found else 'MISSING'}" for seam, found in host.seams.items()]
        lines.append(f"strategies (entry points of {STRATEGY_GROUP})")
        lines += [f"  {name:<40} {verdict}" for name, verdict in self.strategies.items()]
        lines += [f"hook plugins (entry points of {HOOK_GROUP})", f"  {self.hooks}"]
        return "\n".join(lines)


def _diagnose(adapter: HostAdapter) -> Sequence[HostDiagnosis]:
    if hasattr(adapter, "diagnose"):
        return adapter.diagnose()
    return [HostDiagnosis(adapter.serves, adapter.name, "unknown", {}, "served, says its plugin")]


def doctor() -> Diagnosis:
    """Look around: which hosts are installed in which version, which of their seams are found, what is refused and why.

    Sources of the hosts are read, not imported, so this works on machines on which a host cannot run.
    """
    checked = {}
    for info in strategies():
        try:
            resolve_strategy(info.name, {})
            checked[info.name] = f"ok, {info.distribution} {info.version}"
        except OptionError as error:  # an option that it needs is no fault
            checked[info.name] = f"ok, {info.distribution} {info.version}, with options: {error}"
        except Exception as error:  # whatever a plugin does wrong, the others are still to be looked at
            checked[info.name] = str(error) if isinstance(error, HalfframeError) else f"{type(error).__name__}: {error}"
    try:
        manager = hook_manager()
        names = [name for name, _ in manager.list_name_plugin()]
        hooks = f"ok: {', '.join(names) or 'none installed'}"
    except HalfframeError as error:
        manager = hook_manager(installed=False)
        hooks = str(error)
    diagnoses = [finding for adapter in installed_hosts(manager) for finding in _diagnose(adapter)]
    return Diagnosis(tuple(diagnoses), checked, hooks)
