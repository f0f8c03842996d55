"""Patches of single instances, with exact undo. No class and no module is ever changed."""

from __future__ import annotations

import logging
from types import TracebackType
from typing import Any

__all__ = ["Patches"]

_logger = logging.getLogger(__name__)
_ABSENT = object()


class Patches:
    """A set of attribute patches on instances; a context manager that undoes them, last first, whatever happened.

    An attribute that was not in ``vars(obj)`` is deleted on undo, so ``vars(obj)`` ends as it began. An attribute that
    somebody else replaced in the meantime is theirs now and stays; our value is then reachable only through theirs,
    so what is patched in must behave like the original once its run is over.
    """

    def __init__(self) -> None:
        self._undo: list[tuple[Any, str, object, object]] = []

    def set(self, obj: Any, name: str, value: object) -> None:
        """Set ``obj.name = value`` on the instance until undone."""
        before = vars(obj).get(name, _ABSENT)
        setattr(obj, name, value)
        self._undo.append((obj, name, before, value))
        _logger.debug("patched %s.%s", type(obj).__name__, name)

    def undo(self) -> None:
        """Undo every patch; safe to call twice."""
        while self._undo:
            obj, name, before, ours = self._undo.pop()
            if vars(obj).get(name, _ABSENT) is not ours:
                _logger.warning(
                    "%s.%s was replaced while halfframe had patched it; left as it is. Undo patches in the reverse "
                    "order of making them.",
                    type(obj).__name__,
                    name,
                )
            elif before is _ABSENT:
                delattr(obj, name)
            else:
                setattr(obj, name, before)

    def __enter__(self) -> Patches:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.undo()
