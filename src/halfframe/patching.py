"""Patches of single instances, with exact undo. No class and no module is ever changed."""

from __future__ import annotations

import logging
from collections.abc import Callable
from contextlib import ExitStack
from types import TracebackType
from typing import Any

__all__ = ["Patches"]

_logger = logging.getLogger(__name__)
_ABSENT = object()


class Patches:
    """A set of attribute patches on instances; a context manager that undoes them, last first, whatever happened.

    An attribute that was not in ``vars(obj)`` is deleted on undo, so ``vars(obj)`` ends as it began. An attribute that
    somebody else replaced in the meantime is theirs now and stays; our value may then be reachable through theirs, so
    what is patched in must behave like the original once `active` is false.

    Attributes:
        active: True until the patches are undone.
    """

    def __init__(self) -> None:
        self.active = True
        self._undo = ExitStack()

    def set(self, obj: Any, name: str, value: object) -> None:
        """Set ``obj.name = value`` on the instance until undone."""
        before = vars(obj).get(name, _ABSENT)
        setattr(obj, name, value)
        _logger.debug("patched %s.%s", type(obj).__name__, name)

        def restore() -> None:
            if vars(obj).get(name, _ABSENT) is not value:
                _warn_replaced(obj, name)
            elif before is _ABSENT:
                delattr(obj, name)
            else:
                setattr(obj, name, before)

        self.callback(restore)

    def set_class(self, obj: Any, cls: type) -> None:
        """Make `obj` an instance of `cls`, a subclass of its class, until undone: for methods looked up on the type."""
        before = type(obj)
        obj.__class__ = cls
        _logger.debug("patched the class of a %s", before.__name__)

        def restore() -> None:
            if type(obj) is not cls:
                _warn_replaced(obj, "__class__")
            else:
                obj.__class__ = before

        self.callback(restore)

    def callback(self, function: Callable[[], None]) -> None:
        """Call `function` on undo, in its turn; should it raise, the rest is still undone."""
        self._undo.callback(function)

    def undo(self) -> None:
        """Undo every patch; safe to call twice."""
        self.active = False
        self._undo.close()

    def __enter__(self) -> Patches:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.undo()


def _warn_replaced(obj: Any, name: str) -> None:
    _logger.warning(
        "%s.%s was replaced while halfframe had patched it; left as it is. Undo patches in the reverse order of making "
        "them.",
        type(obj).__name__,
        name,
    )
