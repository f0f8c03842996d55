"""Temporal positions of the kept frames, in the hosts' rotary embeddings (RoPE).

A host numbers the frames of what it is given 0, 1, 2, ... These put others in their place for one call of an expert.
In both hosts the first ``D - 2 (D // 3)`` columns of a table of D belong to time, and its rows are positions.
"""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Iterator, Sequence
from types import MethodType
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor

from halfframe import frames
from halfframe.errors import HalfframeError
from halfframe.hosts.calls import intercept, is_compiled

__all__ = ["diffusers_positions", "official_positions"]

_locks: WeakKeyDictionary[torch.nn.Module, threading.RLock] = WeakKeyDictionary()


@contextlib.contextmanager
def official_positions(model: Any, positions: Sequence[int] | None) -> Iterator[Any]:
    """What to call in place of an official ``WanModel`` so that frames are placed at `positions`; None: the model.

    That is a twin of the model with a table of its own: same weights, same submodules. A model that is wrapped (FSDP,
    torch.compile) or whose forward was replaced has no such twin; there the table is exchanged for the while, and
    another thread must not call the same model.
    """
    if positions is None:
        yield model
        return
    owner = next((module for module in model.modules() if isinstance(vars(module).get("freqs"), Tensor)), None)
    if owner is None:
        raise _unknown(model)
    twin = _twin(owner) if owner is model else None
    if twin is not None:
        twin.freqs = _table(owner.freqs, positions)
        yield twin
        return
    with _lock(owner):
        original = owner.freqs
        try:
            owner.freqs = _table(original, positions)
            yield model
        finally:
            owner.freqs = original


def _twin(module: Any) -> Any:
    """A second object over the parts of `module`; None if what runs its call is not the method of its own."""
    own = vars(module)
    forward = own.get("forward")
    if is_compiled(module) or not (forward is None or getattr(forward, "__self__", None) is module):
        return None
    twin = object.__new__(type(module))
    vars(twin).update(own)
    if forward is not None:  # as Ulysses has it
        vars(twin)["forward"] = MethodType(forward.__func__, twin)
    return twin


def _lock(module: torch.nn.Module) -> threading.RLock:
    return _locks.setdefault(module, threading.RLock())


@contextlib.contextmanager
def diffusers_positions(module: Any, positions: Sequence[int] | None, compiled: bool) -> Iterator[None]:
    """Have a diffusers ``WanTransformer3DModel`` place frames at `positions` in this thread; None: as ever.

    The embedding's call is taken over for the thread. In a compiled module that would not be seen, and under context
    parallelism the embedding answers with one rank's tokens only: there its tables are edited for the while, and other
    threads must not call the same module.

    Args:
        module: the transformer, out of torch.compile's wrapper.
        positions: one per frame.
        compiled: whether the module's call is compiled as a whole.
    """
    if positions is None:
        yield
        return
    rope = getattr(module, "rope", None)
    if not isinstance(rope, torch.nn.Module):
        raise _unknown(module)
    if compiled or getattr(module, "_parallel_config", None) is not None:
        with _edited_tables(rope, positions):
            yield
        return

    def around(original: Callable[..., Any], kwargs: dict[str, Any], args: tuple[Any, ...]) -> Any:
        (hidden_states,) = (*args, *kwargs.values())
        span = hidden_states[:, :, :1].expand(-1, -1, positions[-1] + 1, -1, -1)  # its shape is all that counts
        return tuple(_rows(table, positions) for table in original(span))

    undo = intercept(rope, around)
    try:
        yield
    finally:
        undo()


def _rows(table: Tensor, positions: Sequence[int]) -> Tensor:
    """Those of the tokens ``(1, frames * h * w, 1, D)`` that are at `positions` in time."""
    index = torch.tensor(tuple(positions), device=table.device)
    batch, _, *rest = table.shape
    by_frame = table.reshape(batch, positions[-1] + 1, -1, *rest)
    return by_frame.index_select(1, index).reshape(batch, -1, *rest)


@contextlib.contextmanager
def _edited_tables(rope: torch.nn.Module, positions: Sequence[int]) -> Iterator[None]:
    tables = [table for name, table in rope.named_buffers() if name.startswith("freqs") and table.ndim == 2]
    if not tables:
        raise _unknown(rope)
    with _lock(rope):
        originals = [table.clone() for table in tables]
        try:
            for table in tables:
                table.copy_(_table(table, positions))
            yield
        finally:
            for table, original in zip(tables, originals, strict=True):
                table.copy_(original)


def _table(table: Tensor, positions: Sequence[int]) -> Tensor:
    """A copy of a table ``(rows, D)`` whose first rows are, in time, those of `positions`."""
    rows, columns = table.shape
    frames.check_indices(positions, rows)
    time = columns - 2 * (columns // 3)
    result = table.clone()
    result[: len(positions), :time] = table[list(positions), :time]
    return result


def _unknown(model: object) -> HalfframeError:
    return HalfframeError(
        f"{type(model).__name__} has no table of rotary embeddings that halfframe knows, so kept frames cannot have "
        "their true positions; use a strategy with contiguous positions (positions='contiguous'), or a supported "
        "version (see the README)."
    )
