"""The one seam to a GPU's memory and streams; all that is decided above it also runs on a simulated device.

`CudaAccelerator` has been tested in its parts that need no GPU only, and has not been timed on one yet.
"""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from typing import Any, Protocol

import torch
from torch import Tensor

__all__ = ["Accelerator", "CudaAccelerator", "StagedCopies"]


class StagedCopies(Protocol):
    """Copies that are being made beside the computation; not to be read before they were joined."""

    def join(self) -> Sequence[Tensor]:
        """The copies; whatever the calling thread's stream is given from here on waits for them. Does not block."""
        ...


class Accelerator(Protocol):
    """What a preloaded expert needs of the device that it runs on.

    Attributes:
        device: where copies go.
    """

    device: torch.device

    def holds(self, tensor: Tensor) -> bool:
        """Whether `tensor` lies on the device."""
        ...

    def room(self) -> int:
        """Bytes that can be taken for good without getting in the way of the work seen so far."""
        ...

    def copy(self, hosts: Sequence[Tensor]) -> Sequence[Tensor]:
        """Copies of `hosts` on the device, in order with the calling thread's stream."""
        ...

    def page_locked(self, host: Tensor) -> Tensor:
        """A copy of `host` in page-locked memory."""
        ...

    def copy_aside(self, hosts: Sequence[Tensor]) -> StagedCopies:
        """The same beside the calling thread's stream; `hosts` must be page-locked, and must not be freed
        before the copies are made unless they are `page_locked`.

        Raises:
            RuntimeError: there was less room than that, for instance; nothing is kept.
        """
        ...

    def pin(self, address: int, nbytes: int) -> str:
        """Page-lock whole pages of host memory; returns why not, empty if done."""
        ...

    def unpin(self, address: int) -> str:
        """Unlock what was locked at `address`; returns why not, empty if done."""
        ...

    def synchronize(self) -> None:
        """Wait until every copy has been made."""
        ...

    def give_back(self) -> None:
        """Return freed memory to the driver."""
        ...


class CudaAccelerator:
    """A CUDA device as an `Accelerator`.

    Args:
        device: of type ``cuda``; without an index, the current one.
    """

    def __init__(self, device: torch.device) -> None:
        index = torch.cuda.current_device() if device.index is None else device.index
        self.device = torch.device("cuda", index)
        self._aside = torch.cuda.Stream(self.device)  # type: ignore[no-untyped-call]

    def holds(self, tensor: Tensor) -> bool:
        """Whether `tensor` lies on this device."""
        return tensor.device == self.device

    def room(self) -> int:
        """The driver's free bytes, less what the caching allocator may still grow by up to the process's own peak.

        The allocator's cache is not counted as free: the activations that filled it come again with every step. Where
        the host empties the cache between forwards, the peak stands for them.
        """
        free, _ = torch.cuda.mem_get_info(self.device)
        growth = torch.cuda.max_memory_allocated(self.device) - torch.cuda.memory_reserved(self.device)
        return free - max(0, growth)

    def copy(self, hosts: Sequence[Tensor]) -> Sequence[Tensor]:
        """In stream order, so nothing more is to be waited for; asynchronous where `hosts` are page-locked."""
        return [host.to(self.device, non_blocking=True) for host in hosts]

    def page_locked(self, host: Tensor) -> Tensor:
        """From PyTorch's own pinned memory, which is not used again before copies from it are made."""
        return host.pin_memory()

    def copy_aside(self, hosts: Sequence[Tensor]) -> StagedCopies:
        """On a stream of its own, from memory of that stream's pool.

        Such memory comes from the driver, as `room` counted it, and not from the cache that the activations need; nor
        does a copy into it have to wait for kernels that read what lay there before.
        """
        with torch.cuda.stream(self._aside):
            copies = [host.to(self.device, non_blocking=True) for host in hosts]
            return _CudaStaged(copies, self._aside.record_event(), self.device)

    def pin(self, address: int, nbytes: int) -> str:
        """``cudaHostRegister``; releases the GIL meanwhile."""
        with torch.cuda.device(self.device):
            return self._told(_cudart().cudaHostRegister(address, nbytes, 0))

    def unpin(self, address: int) -> str:
        """``cudaHostUnregister``."""
        with torch.cuda.device(self.device):
            return self._told(_cudart().cudaHostUnregister(address))

    def synchronize(self) -> None:
        """Wait for the whole device."""
        torch.cuda.synchronize(self.device)

    def give_back(self) -> None:
        """Empty the caching allocator's cache, of all its streams."""
        torch.cuda.empty_cache()

    def _told(self, code: Any) -> str:
        if int(code) == 0:
            return ""
        with contextlib.suppress(RuntimeError):
            torch.ones(1, device=self.device)  # the runtime keeps the error and tells it to the next kernel: this one
        return str(_cudart().cudaGetErrorString(code))


def _cudart() -> Any:
    return torch.cuda.cudart()  # type: ignore[no-untyped-call]


class _CudaStaged:
    def __init__(self, copies: list[Tensor], made: torch.cuda.Event, device: torch.device) -> None:
        self._copies = copies
        self._made = made
        self._device = device

    def join(self) -> Sequence[Tensor]:
        compute = torch.cuda.current_stream(self._device)
        compute.wait_event(self._made)
        for copy in self._copies:  # their memory is the other stream's: it must not go back while kernels here read it
            copy.record_stream(compute)
        return self._copies
