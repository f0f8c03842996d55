"""What halfframe raises and warns with, and the checks that many options share.

Every message says what was seen, what is needed and what to do about it.
"""

from __future__ import annotations

import contextlib
import difflib
import os
import sys
import warnings
from collections.abc import Iterable
from typing import Any, get_args

__all__ = [
    "HalfframeError",
    "HalfframeWarning",
    "OptionError",
    "PluginError",
    "StrategyError",
    "UnsupportedPipelineError",
    "did_you_mean",
    "is_count",
    "one_of",
    "warn",
]


class HalfframeError(Exception):
    """Base class of every error that halfframe raises on purpose."""


class UnsupportedPipelineError(HalfframeError):
    """halfframe cannot serve the given object; the message says why."""


class StrategyError(HalfframeError):
    """A strategy is unknown, registered twice, or returned something unusable."""


class PluginError(HalfframeError):
    """An installed plugin cannot be loaded or registered; the message names it."""


class OptionError(HalfframeError):
    """An option of `enabled` or of a strategy is unknown or has an unusable value."""


class HalfframeWarning(UserWarning):
    """Something ran, but not as asked: for instance, no latent frame could be skipped."""


def is_count(value: object, least: int) -> bool:
    """Whether `value` is an integer >= `least`; True and False are not."""
    return isinstance(value, int) and not isinstance(value, bool) and value >= least


def one_of(name: str, value: object, literal: Any, more: str = "") -> None:
    """Raise `OptionError` unless `value` is one of the words of a `Literal` type."""
    words = get_args(literal)
    if value not in words:
        raise OptionError(f"{name} must be {' or '.join(map(repr, words))}{more}, got {value!r}.")


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """`` Did you mean 'x'?`` for the closest of `known`, or nothing: to end a message with."""
    names = {other.lower().replace("_", "-"): other for other in known}
    close = difflib.get_close_matches(name.lower().replace("_", "-"), names, 1, 0.5)
    return f" Did you mean {names[close[0]]!r}?" if close else ""


def warn(message: str) -> None:
    """Give a `HalfframeWarning` that points to the code outside of halfframe that led here."""
    warnings.warn(f"halfframe: {message}", HalfframeWarning, stacklevel=_callers_level())


def _callers_level() -> int:
    """The `stacklevel` at which a warning given by our caller points out of this package (and contextlib)."""
    level, frame = 1, sys._getframe(1)
    ours = (os.path.dirname(__file__), os.path.dirname(contextlib.__file__) + os.sep + "contextlib")
    while frame.f_back is not None and frame.f_code.co_filename.startswith(ours):
        level, frame = level + 1, frame.f_back
    return level
