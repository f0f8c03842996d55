"""Patches of single instances, with exact undo. No class and no module is ever changed."""

from __future__ import annotations

import copyreg
import functools
import logging
import weakref
from collections.abc import Callable, Mapping
from types import TracebackType
from typing import Any

__all__ = ["Patches", "Replacement", "StandIn", "same_named_subclass"]

_logger = logging.getLogger(__name__)
_ABSENT = object()
_CLASS: Any = vars(object)["__class__"]

Replacement = Callable[..., Any]
"""``(original, obj, *args, **kwargs)``: what a method does in place of ``original(*args, **kwargs)``."""


class Patches:
    """A set of patches on instances; a context manager that undoes them, last first, whatever happened.

    An attribute that was not in ``vars(obj)`` is deleted on undo, so ``vars(obj)`` ends as it began. An attribute that
    somebody else replaced in the meantime is theirs now and stays; our value may then be reachable through theirs, so
    what is patched in must behave like the original once `active` is false.

    Attributes:
        active: True until the patches are undone.
    """

    def __init__(self) -> None:
        self.active = True
        self._undo: list[Callable[[], None]] = []

    def set(self, obj: Any, name: str, value: object) -> None:
        """Set ``obj.name = value`` on the instance until undone."""
        before = vars(obj).get(name, _ABSENT)

        def restore() -> None:
            found = vars(obj).get(name, _ABSENT)
            if found is not value:
                if found is not before:  # an interrupt may have come before it was set
                    _warn_replaced(obj, name)
            elif before is _ABSENT:
                delattr(obj, name)
            else:
                setattr(obj, name, before)

        self.callback(restore)  # first, so that nothing is ever set that is not undone
        setattr(obj, name, value)
        _logger.debug("patched %s.%s", type(obj).__name__, name)

    def methods(self, obj: Any, replacements: Mapping[str, Replacement]) -> None:
        """Replace methods of one object, those looked up on its type too, until undone.

        The object becomes one of a subclass, and its ``__class__`` still says what it was: who changes methods there,
        as cache-dit does, changes those of the real class, and they are the originals from then on. Copies and pickles
        of it are plain ones, and so is what somebody else builds on its class. The subclass refers to the object
        weakly, so that nothing keeps it once the patches are undone.
        """
        cls = type(obj)
        target = weakref.ref(obj)

        def patched(name: str, replacement: Replacement) -> Any:
            @functools.wraps(getattr(cls, name))
            def method(self: Any, *args: Any, **kwargs: Any) -> Any:
                original = getattr(cls, name)
                if self is not target() or not self_patches.active:
                    return original(self, *args, **kwargs)
                return replacement(functools.partial(original, self), self, *args, **kwargs)

            return method

        self_patches = self
        subclass = same_named_subclass(cls, {name: patched(name, value) for name, value in replacements.items()})

        def restore() -> None:
            if type(obj) is subclass:
                _CLASS.__set__(obj, cls)
            elif type(obj) is not cls:
                _warn_replaced(obj, "__class__")

        self.callback(restore)
        obj.__class__ = subclass
        _logger.debug("patched the class of a %s", cls.__name__)

    def callback(self, function: Callable[[], None]) -> None:
        """Call `function` on undo, in its turn; should it raise, it is called once more, and the rest is undone."""
        self._undo.append(function)

    def undo(self) -> None:
        """Undo every patch, and raise afterwards what came in between; safe to call twice, and after an interrupt."""
        self.active = False
        came: BaseException | None = None
        while self._undo:
            function = self._undo[-1]  # stays until it is done, so that whoever calls next goes on from here
            try:
                function()
            except BaseException as error:
                came = error
                try:
                    function()
                except Exception as again:
                    came = again
            self._undo.pop()
        if came is not None:
            try:
                raise came
            finally:
                came = None  # a frame that keeps its own traceback is freed by the collector only

    def __enter__(self) -> Patches:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.undo()


class StandIn:
    """What is called in place of an attribute's `original`; copies and pickles of the owner get their own original."""

    def __init__(self, original: Callable[..., Any], replacement: Callable[..., Any]) -> None:
        self.original = original
        self._replacement = replacement
        functools.update_wrapper(self, original)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return self._replacement(*args, **kwargs)

    def __reduce_ex__(self, protocol: Any) -> Any:
        return itself, (self.original,)


def itself(value: Any) -> Any:
    """`value`: what a pickle calls to restore it as it was."""
    return value


def _new_instance(cls: Any, *arguments: Any) -> Any:
    return cls.__new__(cls, *arguments)


def same_named_subclass(cls: type, methods: dict[str, Any]) -> type:
    """A subclass of `cls` that shows itself as `cls`, with `methods`; its instances are copied and pickled as `cls`."""
    plain: Any = cls

    def reduce_ex(obj: Any, protocol: Any) -> Any:
        reduced = plain.__reduce_ex__(obj, protocol)
        if isinstance(reduced, str) or reduced[0] is not copyreg.__newobj__:  # type: ignore[attr-defined]
            return reduced
        _, (_, *arguments), *rest = reduced
        return (_new_instance, (plain, *arguments), *rest)  # pickle takes __newobj__ with the object's own class only

    metaclass: Any = type(cls)
    shown: dict[str, Any] = {name: getattr(cls, name) for name in ("__doc__", "__module__", "__qualname__")}
    shown["__class__"] = property(lambda _: cls, _CLASS.__set__)
    result: type = metaclass(cls.__name__, (cls,), {**shown, "__reduce_ex__": reduce_ex, **methods})
    return result


def _warn_replaced(obj: Any, name: str) -> None:
    _logger.warning(
        "%s.%s was replaced while halfframe had patched it; left as it is. Undo patches in the reverse order of making "
        "them.",
        type(obj).__name__,
        name,
    )
