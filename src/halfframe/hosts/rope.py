"""Temporal positions of the kept frames, in the hosts' rotary embeddings (RoPE).

A host numbers the frames of what it is given 0, 1, 2, ... These put others in their place for one call of an expert.
In both hosts the first ``D - 2 (D // 3)`` columns of a table of D belong to time, and its rows are positions. A place
between two rows is where the one is turned towards the other, which is what the formula of the table gives.
"""

from __future__ import annotations

import contextlib
import math
import threading
from collections.abc import Callable, Hashable, Iterator, Sequence
from types import MethodType
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor

from halfframe.errors import HalfframeError
from halfframe.hosts.calls import intercept, is_compiled, original_of
from halfframe.hosts.patching import Patches
from halfframe.sampling import frames

__all__ = ["OfficialPositions", "RopePositions"]

_locks: WeakKeyDictionary[torch.nn.Module, threading.RLock] = WeakKeyDictionary()


class OfficialPositions:
    """Places the frames that an official ``WanModel`` is called with.

    What `at` gives to call is a twin of the model with a table of its own: same weights, same submodules. A model that
    is wrapped (FSDP, torch.compile) or whose forward was replaced has no such twin; there the table is exchanged for
    the while, and another thread must not call the same model.

    The passes of a step place the same frames, so their table is made once: making it waits for the device.

    Args:
        model: the model, wrapped or not.
    """

    def __init__(self, model: Any) -> None:
        self._model = model
        self._latest: tuple[Tensor, Sequence[float], Tensor] | None = None  # the model's table, positions, ours

    @contextlib.contextmanager
    def at(self, positions: Sequence[float] | None) -> Iterator[Any]:
        """What to call in place of the model so that frames are placed at `positions`; None: the model."""
        model = self._model
        if positions is None:
            yield model
            return
        owner = next((module for module in model.modules() if isinstance(vars(module).get("freqs"), Tensor)), None)
        if owner is None:
            raise _unknown(model)
        twin = _twin(owner) if owner is model else None
        if twin is not None:
            twin.freqs = self._table(owner.freqs, positions)
            with _seen_to_compute(owner):
                yield twin
            self._latest = owner.freqs, positions, twin.freqs  # the call may have moved it to its device
            return
        compiled = is_compiled(owner) or hasattr(model, "_orig_mod")
        if compiled:
            _refuse_unseen(owner)
        with _lock(owner), contextlib.nullcontext() if compiled else _seen_to_compute(owner):
            original = owner.freqs
            try:
                owner.freqs = self._table(original, positions)
                yield model
            finally:
                try:
                    owner.freqs = original
                finally:  # once more, for a module's attributes are set by a function, and an interrupt may come in it
                    owner.freqs = original

    def _table(self, table: Tensor, positions: Sequence[float]) -> Tensor:
        latest = self._latest
        if latest is None or latest[0] is not table or latest[1] != positions:
            latest = self._latest = table, positions, _complex_table(table, positions)
        return latest[2]


def _twin(module: Any) -> Any:
    """A second object over the parts of `module`; None if what runs its call is not the method of its own."""
    own = vars(module)
    forward = own.get("forward")
    if is_compiled(module) or not _is_method_of(forward, module):
        return None
    twin = object.__new__(type(module))
    vars(twin).update(own)
    if forward is not None:  # as Ulysses has it
        vars(twin)["forward"] = MethodType(forward.__func__, twin)
    return twin


def _is_method_of(forward: Any, module: Any) -> bool:
    """Whether what was put in place of the class's `forward`, if anything was, is a method of `module`."""
    return forward is None or getattr(forward, "__self__", None) is module


@contextlib.contextmanager
def _seen_to_compute(module: Any) -> Iterator[None]:
    """Refuse afterwards if what was put in place of the forward of `module` has not called its blocks."""
    blocks = getattr(module, "blocks", None)
    if "forward" not in vars(module) or not blocks:
        yield
        return
    met: list[bool] = []
    handle = blocks[0].register_forward_pre_hook(lambda *_: met.append(True))
    try:
        yield
    finally:
        handle.remove()
    if not met:
        raise _computed_elsewhere(module, "its blocks were not")


def _lock(module: torch.nn.Module) -> threading.RLock:
    return _locks.setdefault(module, threading.RLock())


class RopePositions:
    """Has a diffusers ``WanTransformer3DModel`` place frames at given positions, in this thread, for one run.

    The embedding's call is taken over. In a compiled module that would not be seen, and under context parallelism the
    embedding answers with one rank's tokens only: there its tables are edited for the while of a call, and other
    threads must not call the same module.

    Args:
        module: the transformer, out of torch.compile's wrapper.
        patches: of the run.
    """

    def __init__(self, module: Any, patches: Patches) -> None:
        self._module = module
        self._patches = patches
        self._intercepted = self._met = False
        self._positions: Sequence[float] | None = None
        self._step: Hashable = None
        self._latest: tuple[object, tuple[Tensor, ...]] | None = None

    @contextlib.contextmanager
    def at(self, positions: Sequence[float] | None, step: Hashable, compiled: bool) -> Iterator[None]:
        """Place frames at `positions`, one each, during a call; None: as ever.

        Args:
            positions: one per frame.
            step: tells one step from another.
            compiled: whether the module's call is compiled as a whole.

        Raises:
            HalfframeError: the call was made without the embedding.
        """
        if positions is None:
            yield
            return
        rope = getattr(self._module, "rope", None)
        if not isinstance(rope, torch.nn.Module):
            raise _unknown(self._module)
        if compiled or getattr(self._module, "_parallel_config", None) is not None:
            if compiled:
                _refuse_unseen(self._module)
            with _edited_tables(rope, positions):
                yield
            return
        if not self._intercepted:
            self._intercepted = True
            self._patches.callback(self._forget)
            intercept(rope, self._around, self._patches)
        self._positions, self._step, self._met = positions, step, False
        try:
            yield
        finally:
            self._positions = None
        if not self._met:
            raise _computed_elsewhere(self._module, "its rotary embedding was not")

    def _around(self, original: Callable[..., Any], kwargs: dict[str, Any], args: tuple[Any, ...]) -> Any:
        positions = self._positions
        if positions is None:
            return original(*args, **kwargs)
        self._met = True
        (hidden_states,) = (*args, *kwargs.values())
        key = (self._step, positions, hidden_states.shape, hidden_states.device, hidden_states.dtype)
        if self._latest is None or self._latest[0] != key:
            self._latest = key, self._tables(original, hidden_states, positions)
        return self._latest[1]

    def _tables(
        self, original: Callable[..., Any], hidden_states: Tensor, positions: Sequence[float]
    ) -> tuple[Tensor, ...]:
        count = math.ceil(positions[-1]) + 1
        span = hidden_states[:, :, :1].expand(-1, -1, count, -1, -1)  # its shape is all that counts
        cos, sin = original(span)
        batch, _, *rest = cos.shape
        cos, sin = (table.reshape(batch, count, -1, *rest).transpose(0, 1) for table in (cos, sin))
        return tuple(table.transpose(0, 1).reshape(batch, -1, *rest) for table in _placed(cos, sin, positions))

    def _forget(self) -> None:
        self._latest = None


def _refuse_unseen(module: Any) -> None:
    """Refuse a compiled module, which does not show what it calls, whose forward may run elsewhere.

    It runs here if it is the class's, or was replaced by something known to call that: a method of Ulysses, hooks of
    accelerate or diffusers, cache-dit without Ray, our own for another run.
    """
    own = vars(module)
    forward = original_of(own.get("forward"))
    hooked = "_hf_hook" in own or "_context_manager" in own or getattr(own.get("_diffusers_hook"), "hooks", None)
    if not (hooked or _is_method_of(forward, module)) or "_cache_dit_ray_engine" in own:
        raise _computed_elsewhere(module, "compiled it does not show whether its rotary embedding is")


@contextlib.contextmanager
def _edited_tables(rope: torch.nn.Module, positions: Sequence[float]) -> Iterator[None]:
    named = dict(rope.named_buffers())
    cos, sin = named.get("freqs_cos"), named.get("freqs_sin")
    if cos is None or sin is None or cos.ndim != 2:
        raise _unknown(rope)
    with _lock(rope):
        originals = cos.clone(), sin.clone()
        try:
            time = _time_columns(cos)
            for table, placed in zip((cos, sin), _placed(cos[:, :time], sin[:, :time], positions), strict=True):
                table[: len(positions), :time] = placed
            yield
        finally:
            try:
                _put_back((cos, sin), originals)
            finally:  # once more, for an interrupt may come in its middle
                _put_back((cos, sin), originals)


def _put_back(tables: Sequence[Tensor], originals: Sequence[Tensor]) -> None:
    for table, original in zip(tables, originals, strict=True):
        table.copy_(original)


def _complex_table(table: Tensor, positions: Sequence[float]) -> Tensor:
    """A copy of a table ``(rows, D)`` of complex rotations whose first rows are, in time, those at `positions`."""
    result = table.clone()
    time = _time_columns(table)
    cos, sin = _placed(table[:, :time].real, table[:, :time].imag, positions)
    result[: len(positions), :time] = torch.complex(cos, sin)
    return result


def _time_columns(table: Tensor) -> int:
    columns = table.shape[1]
    return columns - 2 * (columns // 3)


def _placed(cos: Tensor, sin: Tensor, positions: Sequence[float]) -> tuple[Tensor, Tensor]:
    """Cosines and sines ``(len(positions), ...)`` at `positions`, of tables ``(rows, ...)``."""
    below, above = ([whole(position) for position in positions] for whole in (math.floor, math.ceil))
    frames.check_indices(below if below == above else sorted({*below, *above}), len(cos))
    c, s = cos[below], sin[below]
    if below == above:
        return c, s
    c_above, s_above = cos[above], sin[above]
    share = [position - row for position, row in zip(positions, below, strict=True)]
    part = torch.tensor(share, dtype=cos.dtype, device=cos.device).reshape(-1, *[1] * (cos.ndim - 1))
    turn = part * torch.atan2(s_above * c - c_above * s, c_above * c + s_above * s)
    return c * turn.cos() - s * turn.sin(), s * turn.cos() + c * turn.sin()


def _computed_elsewhere(model: object, seen: str) -> HalfframeError:
    return HalfframeError(
        f"{type(model).__name__} was called and {seen}, as where another process computes for it, so frames would lose "
        "their true positions; use positions='contiguous', or run without halfframe."
    )


def _unknown(model: object) -> HalfframeError:
    return HalfframeError(
        f"{type(model).__name__} has no table of rotary embeddings that halfframe knows, so kept frames cannot have "
        "their true positions; use a strategy with contiguous positions (positions='contiguous'), or a supported "
        "version (see the README)."
    )
