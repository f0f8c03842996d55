"""What halfframe raises and warns with.

Every message says what was seen, what is needed and what to do about it.
"""

from __future__ import annotations

__all__ = [
    "HalfframeError",
    "HalfframeWarning",
    "OptionError",
    "PluginError",
    "StrategyError",
    "UnsupportedPipelineError",
    "is_count",
]


class HalfframeError(Exception):
    """Base class of every error that halfframe raises on purpose."""


class UnsupportedPipelineError(HalfframeError):
    """The given object is no pipeline that halfframe can serve; the message says why."""


class StrategyError(HalfframeError):
    """A strategy is unknown, registered twice, or returned something unusable."""


class PluginError(HalfframeError):
    """An installed plugin cannot be loaded or registered; the message names it."""


class OptionError(HalfframeError):
    """An option of `enabled` or of a strategy is unknown or has an unusable value."""


class HalfframeWarning(UserWarning):
    """Something ran, but not faster: for instance, no latent frame could be left out."""


def is_count(value: object, least: int) -> bool:
    """Whether `value` is an integer of `least` or more, as options that count something must be; True is none."""
    return isinstance(value, int) and not isinstance(value, bool) and value >= least
