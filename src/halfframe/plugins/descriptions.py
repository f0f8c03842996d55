"""What each installed strategy does, as far as its docstring and signature tell."""

from __future__ import annotations

import inspect
from dataclasses import dataclass, field
from importlib import metadata
from typing import Any

from halfframe.errors import PluginError
from halfframe.plugins import DEFAULT_STRATEGY
from halfframe.plugins.manager import distribution_of, entries, load
from halfframe.plugins.strategies import STRATEGY_GROUP, StrategyInfo
from halfframe.sampling.strategy import Strategy

__all__ = ["Description", "descriptions"]

REQUIRED = "(required)"


@dataclass(frozen=True, slots=True)
class Description:
    """An installed strategy, described.

    Attributes:
        info: where it is and who brings it.
        summary: the first line of its docstring, or why it cannot be imported.
        options: its options -> their defaults; ``"(required)"`` where there is none.
    """

    info: StrategyInfo
    summary: str
    options: dict[str, Any] = field(default_factory=dict)

    @property
    def default(self) -> str | None:
        """What `halfframe.enabled` uses unless told otherwise, options included, if that is this strategy."""
        return DEFAULT_STRATEGY if self.info.name == DEFAULT_STRATEGY.partition(":")[0] else None

    def to_dict(self) -> dict[str, Any]:
        """The description as plain data."""
        where = {key: getattr(self.info, key) for key in ("name", "distribution", "version", "value")}
        return {**where, "default": self.default, "summary": self.summary, "options": self.options}

    def __str__(self) -> str:
        options = ", ".join(f"{key}={value}" for key, value in self.options.items()) or "none"
        used = f"\n    used by default as {self.default}" if self.default else ""
        who = f"[{self.info.distribution} {self.info.version}]"
        return f"{self.info.name}: {self.summary}\n    options: {options}  {who}{used}"


def descriptions() -> tuple[Description, ...]:
    """Every installed strategy, by name; each is imported, and one that cannot be is described by its error."""
    return tuple(map(_describe, sorted(entries(STRATEGY_GROUP), key=lambda entry: entry.name)))


def _describe(entry: metadata.EntryPoint) -> Description:
    info = StrategyInfo(entry.name, *distribution_of(entry), entry.value)
    try:
        target = load(entry)
    except PluginError as error:
        return Description(info, str(error))
    described = target if inspect.isroutine(target) or isinstance(target, type) else type(target)
    summary = (inspect.getdoc(described) or "no description").partition("\n")[0]
    return Description(info, summary, _options(target))


def _options(target: object) -> dict[str, Any]:
    if isinstance(target, Strategy) or not callable(target):
        return {}
    try:
        parameters = list(inspect.signature(target).parameters.values())
    except ValueError:
        return {}
    is_class = isinstance(target, type)
    named = (inspect.Parameter.KEYWORD_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
    own = [parameter for parameter in parameters[0 if is_class else 2 :] if parameter.kind in named]
    found = {p.name: REQUIRED if p.default is p.empty else p.default for p in own}
    return found if is_class else {"noise": "full", **found}  # every function takes the option of `Expansion`
