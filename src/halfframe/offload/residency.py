"""Where a module's weights are: on the host for good, and on an accelerator for a time.

Weights do not change in inference, so a module that leaves the accelerator needs nothing copied back: it is pointed at
the host tensors that it came from, which were kept. Knows nothing of hosts, experts or runs.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import Module, Parameter

from halfframe.offload.accelerator import Accelerator, StagedCopies
from halfframe.offload.staging import in_one_line

__all__ = ["Residency", "why_not"]

_SHARDED = frozenset({"FullyShardedDataParallel", "FSDPModule"})


def why_not(module: Module) -> str:
    """Why the weights of `module` cannot be pointed elsewhere and back; empty if they can."""
    kind = type(module).__name__
    if any(cls.__name__ in _SHARDED for part in module.modules() for cls in type(part).__mro__):
        return f"{kind} is sharded by FSDP, which places its shards itself"
    if type(module).__setattr__ is not Module.__setattr__:
        return f"{kind} passes its attributes on to another object, so its `to` cannot be patched on the instance"
    for name, parameter in module.named_parameters():
        if type(parameter) is not Parameter:
            return f"{name} of {kind} is a {type(parameter).__name__}, which moves in ways of its own"
        if parameter.grad is not None:
            return f"{name} of {kind} has a gradient"
    return ""


@dataclass(frozen=True, slots=True, eq=False)
class _Slot:
    """A place in a module that shows a tensor: a parameter's data, or an entry of a buffer table."""

    place: Parameter | dict[str, Tensor | None]
    name: str

    def read(self) -> Tensor:
        tensor = self.place.data if isinstance(self.place, Parameter) else self.place[self.name]
        assert tensor is not None
        return tensor

    def write(self, tensor: Tensor) -> None:
        if isinstance(self.place, Parameter):
            self.place.data = tensor
        else:
            self.place[self.name] = tensor


def _slots(module: Module) -> list[_Slot]:
    """Every place once: a parameter that is tied by being the same object counts as one."""
    parameters = [_Slot(parameter, name) for name, parameter in module.named_parameters()]
    buffers = [
        _Slot(part._buffers, name)
        for part in module.modules()
        for name, buffer in part._buffers.items()
        if buffer is not None
    ]
    return parameters + buffers


class Residency:
    """One module, whose host tensors are kept while copies of them serve on `accelerator`.

    Copies are made per tensor and not per storage: tensors that were read from one file are views of one storage, which
    may hold more than the module. Views of the very same memory (tied weights) share a copy.

    `enter` and `leave` return False, having done nothing, where the weights are not as they expect them, because
    somebody else placed them; the module's own `to` serves there.

    Attributes:
        trouble: why copies could not be made ahead, since this was last set; empty if nothing failed.
    """

    def __init__(self, module: Module, accelerator: Accelerator) -> None:
        self.module = module
        self.trouble = ""
        self._accelerator = accelerator
        self._slots: list[_Slot] = []
        self._host: list[Tensor] = []
        self._copies: list[Tensor] = []
        self._carried = False
        self._staged: tuple[list[Tensor], StagedCopies] | None = None
        self._aside = False

    @property
    def on_host(self) -> bool:
        """Whether every weight is on the host, as `enter` needs it."""
        tensors = [slot.read() for slot in _slots(self.module)]
        return all(tensor.device.type == "cpu" and not self._accelerator.holds(tensor) for tensor in tensors)

    @property
    def staged(self) -> bool:
        """Whether copies are being made ahead."""
        return self._staged is not None

    @property
    def aside(self) -> bool:
        """Whether the weights show copies that were made ahead."""
        return self._aside

    @property
    def nbytes(self) -> int:
        """Bytes of the weights, memory that several of them share counted once."""
        tensors = _unique([slot.read() for slot in _slots(self.module)])
        return sum(tensor.numel() * tensor.element_size() for tensor in tensors)

    def stage(self) -> None:
        """Begin to make the copies that `enter` will need, aside; `trouble` says why if that fails."""
        host = [slot.read() for slot in _slots(self.module)]
        try:
            self._staged = (host, self._accelerator.copy_aside(_unique(host)))
            self._staged[1].begin()
            return
        except RuntimeError as error:  # out of memory, above all; whatever it is, the switch can still do without
            self.trouble = in_one_line(error)
        self.drop_staged()
        self._accelerator.give_back()  # here the error's traceback no longer holds what memory there was

    def drop_staged(self) -> None:
        """Let go of copies that were made ahead and not used."""
        if self._staged is not None:
            self._staged[1].stop()
            self._staged = None
            self._accelerator.give_back()

    def enter(self) -> bool:
        """Point the weights at copies on the device: those staged, else such as are made now.

        Staged copies that failed are told of in `trouble`.
        """
        if not self.on_host:
            return False
        slots = _slots(self.module)
        host = [slot.read() for slot in slots]
        unique = _unique(host)
        ahead = self._join(host)
        made = self._accelerator.copy(unique) if ahead is None else ahead
        by_memory = {_memory(tensor): copy for tensor, copy in zip(unique, made, strict=True)}
        copies = [by_memory[_memory(tensor)] for tensor in host]
        self._slots, self._host, self._copies = slots, host, copies
        self._carried, self._aside = False, ahead is not None
        for slot, copy in zip(slots, copies, strict=True):
            slot.write(copy)
        return True

    def _join(self, host: list[Tensor]) -> Sequence[Tensor] | None:
        """The staged copies of `host`, if that is what was staged and nothing failed; else they are let go."""
        if self._staged is None:
            return None
        if _same_all(self._staged[0], host):
            try:
                made = self._staged[1].join()
            except RuntimeError as error:
                self.trouble = in_one_line(error)
            else:
                self._staged = None
                return made
        else:
            self.trouble = "the weights were exchanged after it had begun to come in"
        self.drop_staged()
        return None

    def leave(self) -> bool:
        """Point the weights back at the host tensors; the copies are let go, and nothing is copied."""
        if not self._copies or not _same_all([slot.read() for slot in _slots(self.module)], self._copies):
            self.forget()
            return False
        if self._carried and not self._unchanged():
            self.forget()
            return False
        self._carried = False
        self.put_back()
        return True

    def put_back(self) -> None:
        """`leave` for whatever part of the weights shows our copies: after an exception it may be a part only.

        Weights that are on the device since an earlier run stay there.
        """
        if self._carried:
            return
        for slot, host, copy in zip(self._slots, self._host, self._copies, strict=True):
            if _memory(slot.read()) == _memory(copy):
                slot.write(host)
        self.forget()

    def carry(self) -> None:
        """A run is over. Weights that stay on the device may be changed there now, so `leave` compares them first."""
        self._carried = bool(self._copies)

    def forget(self) -> None:
        """Keep nothing: the weights stay where they are, and what they do not show is let go."""
        self._slots, self._host, self._copies = [], [], []
        self._carried = self._aside = False

    def _unchanged(self) -> bool:
        """Whether the copies still equal the host tensors; takes the memory of one tensor at a time."""
        pairs = zip(self._host, self._copies, strict=True)
        return all(torch.equal(self._accelerator.copy([host])[0], copy) for host, copy in pairs)


def _memory(tensor: Tensor) -> tuple[object, ...]:
    """What makes two tensors the same view of the same memory."""
    return tensor.device, tensor.data_ptr(), tensor.dtype, tuple(tensor.shape), tensor.stride()


def _unique(tensors: Sequence[Tensor]) -> list[Tensor]:
    return list({_memory(tensor): tensor for tensor in tensors}.values())


def _same_all(some: Sequence[Tensor], others: Sequence[Tensor]) -> bool:
    return [_memory(tensor) for tensor in some] == [_memory(tensor) for tensor in others]
