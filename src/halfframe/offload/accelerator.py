"""The one seam to a GPU's memory and streams; all that is decided above it also runs on a simulated device."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Sequence
from typing import Protocol

import torch
from torch import Tensor

from halfframe.offload.staging import Copying, Ring, as_bytes, page_locked_ring

__all__ = ["Accelerator", "CudaAccelerator", "StagedCopies"]


class StagedCopies(Protocol):
    """Copies that are made beside the computation; not to be read before they were joined."""

    def begin(self) -> None:
        """Have them made, in a thread of their own.

        Raises:
            RuntimeError: there can be no thread.
        """
        ...

    def join(self) -> Sequence[Tensor]:
        """The copies; whatever the calling thread's stream is given from here on waits for them.

        Blocks until all of them are on their way, not until they are made.

        Raises:
            RuntimeError: not all of them could be made.
        """
        ...

    def stop(self) -> None:
        """Let go of copies that are not to be joined, begun or not; nothing reads their hosts any more then."""
        ...


class Accelerator(Protocol):
    """What a prefetched expert needs of the device that it runs on.

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

    def copy_aside(self, hosts: Sequence[Tensor]) -> StagedCopies:
        """The same beside the calling thread's stream: memory for copies that `StagedCopies.begin` has made.

        Raises:
            RuntimeError: there was less room than that, for instance; nothing is kept.
        """
        ...

    def give_back(self) -> None:
        """Return freed memory to the driver."""
        ...

    def close(self) -> None:
        """Let go of the host memory that copies go through."""
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
        self._ring: Ring | None = None

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
        """By way of page-locked memory; plainly if that fails."""
        with contextlib.suppress(RuntimeError):
            return self._bounced(hosts)
        return [host.to(self.device) for host in hosts]

    def copy_aside(self, hosts: Sequence[Tensor]) -> StagedCopies:
        """On a stream of its own, by way of page-locked memory, into memory of that stream's pool.

        Such memory comes from the driver, as `room` counted it, and not from the cache that the activations need; nor
        does a copy into it have to wait for kernels that read what lay there before.
        """
        ring = self._page_locked()
        with torch.cuda.stream(self._aside):
            return Copying(ring, _CudaLane(self._aside), hosts, self._memory_for(hosts))

    def give_back(self) -> None:
        """Empty the caching allocator's cache, of all its streams."""
        torch.cuda.empty_cache()

    def close(self) -> None:
        """Hand the page-locked memory back to PyTorch, which does not use it again before copies from it are made."""
        self._ring = None

    def _bounced(self, hosts: Sequence[Tensor]) -> Sequence[Tensor]:
        ring, copies = self._page_locked(), self._memory_for(hosts)
        ring.send(hosts, copies, _CudaLane(torch.cuda.current_stream(self.device)))
        return copies

    def _page_locked(self) -> Ring:
        if self._ring is None:
            self._ring = page_locked_ring()
        return self._ring

    def _memory_for(self, hosts: Sequence[Tensor]) -> list[Tensor]:
        """What copies go into, of the current stream's pool; copies already, of tensors that the ring leaves out."""
        return [
            host.to(self.device) if as_bytes(host) is None else torch.empty_like(host, device=self.device)
            for host in hosts
        ]


class _CudaLane:
    """A stream as a `Lane`, for any thread."""

    def __init__(self, stream: torch.cuda.Stream) -> None:
        self._stream = stream

    def send(self, source: Tensor, target: Tensor) -> None:
        with torch.cuda.stream(self._stream):
            target.copy_(source, non_blocking=True)

    def mark(self) -> Callable[[], None]:
        made = torch.cuda.Event(blocking=True)  # type: ignore[no-untyped-call]  # whoever waits for it sleeps
        made.record(self._stream)
        return made.synchronize

    def wait(self) -> None:
        self._stream.synchronize()

    def meet(self, copies: Sequence[Tensor]) -> None:
        compute = torch.cuda.current_stream(self._stream.device)
        compute.wait_stream(self._stream)
        for copy in copies:  # their memory is the other stream's: it must not go back while kernels here read it
            copy.record_stream(compute)
