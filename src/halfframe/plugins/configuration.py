"""The options of `halfframe.enabled`, checked: every other way to switch halfframe on goes through here too."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import pluggy

from halfframe.errors import OptionError
from halfframe.plugins.manager import hook_manager
from halfframe.plugins.strategies import DEFAULT_STRATEGY, StrategyLike, resolve_strategy
from halfframe.sampling.guidance import Guidance, GuidancePlan
from halfframe.sampling.strategy import Strategy

__all__ = ["Configuration", "configure", "guidance_of"]


@dataclass(frozen=True, slots=True)
class Configuration:
    """What a user asked for.

    Attributes:
        strategy: decides what is computed.
        guidance: decides which steps compute the unconditional pass.
        hooks: of the plugins.
        measure: whether forward passes are timed.
    """

    strategy: Strategy
    guidance: GuidancePlan
    hooks: pluggy.PluginManager
    measure: bool = False

    def __str__(self) -> str:
        parts = [str(self.strategy)]
        if self.guidance and not isinstance(self.strategy, GuidancePlan):
            parts.append(str(self.guidance))
        parts += ["measure"] if self.measure else []
        return ", ".join(parts)


def configure(
    strategy: StrategyLike = DEFAULT_STRATEGY,
    *,
    guidance: Guidance | None = None,
    measure: bool = False,
    plugins: Iterable[object] = (),
    **options: Any,
) -> Configuration:
    """Check the options of `halfframe.enabled`, all but the pipeline; raises as it does."""
    if not isinstance(measure, bool):
        raise OptionError(f"measure must be True or False, got {measure!r}.")
    if not isinstance(plugins, Iterable):
        raise OptionError(f"plugins must be a list of plugins, got {plugins!r}; give plugins=[plugin].")
    resolved = resolve_strategy(strategy, options)
    return Configuration(resolved, guidance_of(resolved, guidance), hook_manager(plugins), measure)


def guidance_of(strategy: Strategy, guidance: Guidance | None) -> GuidancePlan:
    """The guidance that goes with `strategy`: a recipe, for one, brings its own.

    Raises:
        OptionError: `guidance` is not a `Guidance`, or is given beside a recipe, which has its own.
    """
    if guidance is not None and not isinstance(guidance, Guidance):
        raise OptionError(f"guidance must be a halfframe.Guidance, got {guidance!r}; give Guidance(skip_last=5).")
    if isinstance(strategy, GuidancePlan):
        if guidance:
            raise OptionError(f"{strategy} says for each step what becomes of guidance; leave out guidance={guidance}.")
        return strategy
    return guidance or Guidance()
