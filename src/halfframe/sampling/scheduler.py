"""The scheduler seen from outside: its schedule, and the memory a multistep scheduler keeps between steps.

Nothing here knows a scheduler by name. History is every tensor in the scheduler's state that has the sample's shape: x0
predictions and the last sample of UniPC, x0 predictions of DPM-Solver++, the derivative of Heun, none of Euler.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor

__all__ = ["Scheduler", "is_linear", "map_history", "restart", "sample_of", "sigma_at", "with_sample"]


class Scheduler(Protocol):
    """A scheduler of diffusers' kind, as far as it is used here."""

    timesteps: Tensor
    sigmas: Tensor

    def step(self, model_output: Tensor, timestep: Any, sample: Tensor, *args: Any, **kwargs: Any) -> Any:
        """``(prev_sample, ...)`` or an object with ``prev_sample``."""
        ...


@dataclass(frozen=True, slots=True)
class _Slot:
    value: Tensor
    assign: Callable[[Tensor | None], None]


def sigma_at(scheduler: Scheduler, index: int) -> float:
    """Noise level 0..1 at schedule position `index`, from the scheduler's table, not from the (rounded) timestep."""
    return float(scheduler.sigmas[index])


def map_history(scheduler: Scheduler, sample: Tensor, function: Callable[[Tensor], Tensor]) -> bool:
    """Pass every tensor of the scheduler's history through `function` if that keeps the history valid.

    A scheduler step is a weighted sum of sample and history, so a `function` that is linear in them commutes with it;
    whether it is, is found by comparing ``f(x + h)`` with ``f(x) + f(h)``. Returns False, and changes nothing, if it is
    not (it adds noise, say); a scheduler without history is always fine.
    """
    slots = _history(scheduler, sample)
    if not slots:
        return True
    if not is_linear(function, sample, slots[0].value):
        return False
    for slot in slots:
        slot.assign(function(slot.value))
    return True


def is_linear(function: Callable[[Tensor], Tensor], x: Tensor, h: Tensor) -> bool:
    """Whether ``f(x + h) == f(x) + f(h)`` within rounding, in float32 at least: bfloat16's would hide a good deal."""
    dtype = torch.promote_types(x.dtype, torch.float32)
    x, h = x.to(dtype), h.to(dtype)
    together, apart = function(x + h), function(x) + function(h)
    if not (x + h).isfinite().all():
        return True  # the clip is lost already, as it is without halfframe; it must not look like a strategy's doing
    return bool((together - apart).norm() <= 100 * torch.finfo(torch.float32).eps * apart.norm() + 1e-12)


def restart(scheduler: Scheduler, sample: Tensor) -> bool:
    """Make a multistep scheduler forget its history: its next step is of first order and without corrector.

    Returns False, and changes nothing, for a scheduler that has history and no notion of building it up again.
    """
    slots = _history(scheduler, sample)
    if not slots:
        return True
    if not hasattr(scheduler, "lower_order_nums"):
        return False
    for slot in slots:
        slot.assign(None)
    scheduler.lower_order_nums = 0
    return True


def _history(scheduler: Scheduler, sample: Tensor) -> list[_Slot]:
    slots: list[_Slot] = []

    def set_attribute(name: str) -> Callable[[Tensor | None], None]:
        return lambda value: setattr(scheduler, name, value)

    def set_item(items: list[Any], index: int) -> Callable[[Tensor | None], None]:
        return lambda value: items.__setitem__(index, value)

    for name, value in vars(scheduler).items():
        if isinstance(value, Tensor) and value.shape == sample.shape:
            slots.append(_Slot(value, set_attribute(name)))
        elif isinstance(value, list):
            slots.extend(
                _Slot(item, set_item(value, i))
                for i, item in enumerate(value)
                if isinstance(item, Tensor) and item.shape == sample.shape
            )
    return slots


def sample_of(result: Any) -> Tensor:
    """The new sample in a scheduler's result."""
    sample: Tensor = result[0] if isinstance(result, tuple) else result.prev_sample
    return sample


def with_sample(result: Any, function: Callable[[Tensor], Tensor]) -> Any:
    """A scheduler's result with its new sample passed through `function`."""
    if isinstance(result, tuple):
        return (function(result[0]), *result[1:])
    result.prev_sample = function(result.prev_sample)
    return result
