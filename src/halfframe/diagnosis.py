"""What halfframe finds in this environment: hosts, versions, their seams, plugins, and what would be refused."""

from __future__ import annotations

import dataclasses
from typing import Any

from halfframe.errors import HalfframeError
from halfframe.hosts import BuiltinHosts, installed_hosts
from halfframe.hosts.base import HostDiagnosis
from halfframe.plugins import HOOK_GROUP, STRATEGY_GROUP, hook_manager, resolve_strategy, strategies

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

    def to_dict(self) -> dict[str, Any]:
        """The findings as plain data that `json.dumps` takes."""
        return {
            "hosts": [dataclasses.asdict(host) for host in self.hosts],
            "strategies": self.strategies,
            "hooks": self.hooks,
        }

    def __str__(self) -> str:
        lines = ["hosts"]
        for host in self.hosts:
            version = host.version or "not installed"
            lines.append(f"  {host.pipeline:<40} {host.package} {version}: {host.verdict}")
            lines += [f"      {seam}: {'found' if found else 'MISSING'}" for seam, found in host.seams.items()]
        lines.append(f"strategies (entry points of {STRATEGY_GROUP})")
        lines += [f"  {name:<40} {verdict}" for name, verdict in self.strategies.items()]
        lines += [f"hook plugins (entry points of {HOOK_GROUP})", f"  {self.hooks}"]
        return "\n".join(lines)


def doctor() -> Diagnosis:
    """Look around: which hosts are installed in which version, which of their seams are found, what is refused and why.

    Sources of the hosts are read, not imported, so this works on machines on which a host cannot run.
    """
    checked = {}
    for info in strategies():
        try:
            resolve_strategy(info.name, {})
            checked[info.name] = f"ok, {info.distribution} {info.version}"
        except HalfframeError as error:
            checked[info.name] = str(error)
    try:
        manager = hook_manager([BuiltinHosts()])
        hooks = "ok"
    except HalfframeError as error:
        manager = hook_manager([BuiltinHosts()], installed=False)
        hooks = str(error)
    diagnoses = [finding for adapter in installed_hosts(manager) for finding in adapter.diagnose()]
    return Diagnosis(tuple(diagnoses), checked, hooks)
