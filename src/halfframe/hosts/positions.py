"""Temporal positions of the kept frames, in the hosts' rotary embeddings (RoPE).

A host numbers the frames of what it is given 0, 1, 2, ... These put others in their place for one call of an expert.
In both hosts the first ``D - 2 (D // 3)`` columns of a table of D belong to time, and its rows are positions.
"""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from halfframe import frames
from halfframe.errors import HalfframeError
from halfframe.hosts.calls import intercept

__all__ = ["diffusers_positions", "official_positions"]

_editing = threading.Lock()


@contextlib.contextmanager
def official_positions(model: Any, positions: Sequence[int] | None) -> Iterator[None]:
    """Have an official ``WanModel`` (FSDP's wrapper or torch.compile's too) place frames at `positions`; None: as ever.

    Its table is an attribute that every forward reads, so another thread must not call the same model meanwhile.
    """
    if positions is None:
        yield
        return
    owner = next((module for module in model.modules() if isinstance(vars(module).get("freqs"), Tensor)), None)
    if owner is None:
        raise _unknown(model)
    original = owner.freqs
    owner.freqs = _table(original, positions)
    try:
        yield
    finally:
        owner.freqs = original


@contextlib.contextmanager
def diffusers_positions(module: Any, positions: Sequence[int] | None, compiled: bool) -> Iterator[None]:
    """Have a diffusers ``WanTransformer3DModel`` place frames at `positions` in this thread; None: as ever.

    The embedding's call is taken over for the thread. In a compiled module that would not be seen, so there the
    embedding's tables are edited for the while, and other threads must not call the same module.

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
    if compiled:
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
    with _editing:
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
