"""Calls of a module that other pipelines may share: taken over in one thread, for a while.

What runs a module's call is replaced on the instance: its ``forward``, or for a module compiled in place by
``module.compile()`` the compiled call, which a new ``forward`` would either escape or force to be compiled again. Code
that offloads weights puts itself into ``forward`` too, before a run starts; what it put there is called as ever.
"""

from __future__ import annotations

import os
import threading
import weakref
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch

from halfframe.hosts.patching import Patches

__all__ = ["Around", "intercept", "is_compiled", "original_of"]

Around = Callable[[Callable[..., Any], dict[str, Any], tuple[Any, ...]], Any]
"""``(original, keywords, positional arguments) -> output``; calls ``original``, or does not."""

_STATE = "__getstate__"  # asked for on the instance by `copy` and `pickle`
_COMPILED_CALL = "_compiled_call_impl"  # where torch keeps the call of a module compiled in place
_lock = threading.Lock()


def _renew_lock() -> None:
    """The thread that held it is not in a forked process."""
    global _lock
    _lock = threading.Lock()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_renew_lock)


@dataclass(frozen=True, slots=True, eq=False)
class _Interception:
    thread: int
    around: Around


class _Switchboard:
    """In place of what runs a module's call: gives it to the calling thread's interception, if it has one.

    There is one per module, however many runs share it, so that they may end in any order. Copies of the module, deep,
    shallow or by pickling, are given their state by `state_of` and are plain.
    """

    def __init__(self, module: torch.nn.Module, attribute: str) -> None:
        self._module = weakref.ref(module)
        self._attribute = attribute
        self.original: Callable[..., Any] = getattr(module, attribute)
        self.__wrapped__ = self.original  # hosts ask `inspect.signature` which inputs the module takes
        self.was_own = attribute in vars(module)
        self.interceptions: tuple[_Interception, ...] = ()  # exchanged, never changed: read without the lock

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        thread = threading.get_ident()
        # A run may be started in the middle of another one of its thread, and then the calls are the later one's.
        for interception in reversed(self.interceptions):
            if interception.thread == thread:
                return interception.around(self.original, kwargs, args)
        return self.original(*args, **kwargs)

    def state_of(self) -> Any:
        """What a copy of the module is made of."""
        module: Any = self._module()
        cls = type(module)
        own = cls.__getstate__(module) if hasattr(cls, "__getstate__") else vars(module)
        if not isinstance(own, dict):
            return own
        state = {name: value for name, value in own.items() if name != _STATE}
        if state.get(self._attribute) is self:
            del state[self._attribute]
            if self.was_own:
                state[self._attribute] = self.original
        return state


def original_of(call: Any) -> Any:
    """What was there before `intercept` replaced it by `call`: None if the class's; `call`, if it is none of ours."""
    while isinstance(call, _Switchboard):
        call = call.original if call.was_own else None
    return call


def is_compiled(module: torch.nn.Module) -> bool:
    """Whether ``module.compile()`` was called."""
    return vars(module).get(_COMPILED_CALL) is not None


def intercept(module: torch.nn.Module, around: Around, patches: Patches, thread: int | None = None) -> None:
    """Have `around` make one thread's calls of `module`, until `patches` are undone.

    Several interceptions of one module may be undone in any order. If somebody else replaced what was replaced here,
    theirs stays, and calls through it are plain ones.

    Args:
        module: the module, or the wrapper that ``torch.compile`` put around it.
        around: makes the call, or answers without making it.
        patches: what undoes it; told first, so that nothing is ever set that is not undone.
        thread: whose calls, by its identifier; None: the present one's.
    """
    attribute = _COMPILED_CALL if is_compiled(module) else "forward"
    interception = _Interception(threading.get_ident() if thread is None else thread, around)
    board: _Switchboard | None = None

    def undo() -> None:
        with _lock:
            if board is None:
                return
            mine: _Switchboard = board
            mine.interceptions = tuple(other for other in mine.interceptions if other is not interception)
            if mine.interceptions:
                return
            if getattr(vars(module).get(_STATE), "__self__", None) is mine:
                delattr(module, _STATE)
            if vars(module).get(attribute) is not mine:
                return
            if mine.was_own:
                setattr(module, attribute, mine.original)
            else:
                delattr(module, attribute)

    patches.callback(undo)
    with _lock:
        found: Any = vars(module).get(attribute)
        board = found if isinstance(found, _Switchboard) else _Switchboard(module, attribute)
        board.interceptions = (*board.interceptions, interception)
        if board is not found:
            setattr(module, _STATE, board.state_of)
            setattr(module, attribute, board)
