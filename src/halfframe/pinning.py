"""Page-locking host memory in place, so that a GPU can copy from it while it computes. Knows nothing of modules."""

from __future__ import annotations

import logging
import mmap
import os
from collections.abc import Sequence
from pathlib import Path

from torch import Tensor

from halfframe.accelerator import Accelerator

__all__ = ["HOST_RESERVE", "OWN_PAGES", "PIECE", "PinnedPieces", "available_host_memory", "has_own_pages", "pieces"]

HOST_RESERVE = 8 << 30
"""Bytes of host memory that must be available beyond what is to be page-locked."""
PIECE = 1 << 30
"""Most bytes that are page-locked in one go."""
OWN_PAGES = 32 << 20
"""Allocations of so many bytes share no page with another: the C library maps them apart from its heap."""

_logger = logging.getLogger(__name__)


def available_host_memory() -> int:
    """Bytes that the operating system can hand out without swapping; 0 if it does not say."""
    try:
        for line in Path("/proc/meminfo").read_text(encoding="ascii").splitlines():
            if line.startswith("MemAvailable:"):
                return int(line.split()[1]) * 1024
    except OSError:
        pass
    try:
        return os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (AttributeError, OSError, ValueError):
        return 0


class PinnedPieces:
    """Host memory of some tensors, page-locked in place, piece by piece.

    Only allocations with pages of their own are locked. A copy that crosses from locked memory into other memory fails
    on CUDA, and it might be anybody's whose small tensor shares a page with ours.

    Page-locked memory cannot be swapped out, so `advance` refuses where less than the tensors' size and `HOST_RESERVE`
    is available, as if locking took that memory anew: it does where pages were swapped out or are mapped from a file.

    Args:
        tensors: on the host; kept, so that no locked memory is freed.
        accelerator: locks and unlocks.
    """

    def __init__(self, tensors: Sequence[Tensor], accelerator: Accelerator) -> None:
        self.tensors = tensors
        self._accelerator = accelerator
        self._open = pieces(tensors)
        self._locked: list[int] = []
        self._failure = self._refusal()

    @property
    def complete(self) -> bool:
        """Whether all is locked."""
        return not self._failure and not self._open

    def advance(self, limit: int) -> str:
        """Lock pieces until `limit` bytes are reached or none is left; all or nothing: returns why not, else empty."""
        done = 0
        while self._open and not self._failure and done < limit:
            address, nbytes = self._open.pop()
            self._locked.append(address)  # before it is: an interrupt may come as soon as it is locked
            told = self._accelerator.pin(address, nbytes)
            if told:
                self._failure = f"page-locking {nbytes / 2**30:.2f} GiB of host memory failed: {told}"
                self._locked.pop()
                self.close()
            done += nbytes
        return self._failure

    def close(self) -> None:
        """Unlock everything, once no copy reads it any more."""
        if self._locked:
            self._accelerator.synchronize()
        while self._locked:
            told = self._accelerator.unpin(self._locked[-1])
            self._locked.pop()
            if told:
                _logger.warning("host memory could not be unlocked: %s", told)

    def _refusal(self) -> str:
        largest = max((nbytes for _, nbytes in self._open), default=0)
        if largest > PIECE:
            return (
                f"{largest / 2**30:.1f} GiB of weights are one allocation, as where a checkpoint file is mapped into "
                f"memory; at most {PIECE / 2**30:.0f} GiB is page-locked in one piece"
            )
        small = sum(tensor.numel() * tensor.element_size() for tensor in self.tensors if not has_own_pages(tensor))
        if small > PIECE:
            return f"{small / 2**30:.1f} GiB of weights are in allocations too small to be page-locked"
        needed = sum(nbytes for _, nbytes in self._open) + HOST_RESERVE
        available = available_host_memory()
        if available < needed:
            return f"{available / 2**30:.1f} GiB of host memory is available, {needed / 2**30:.1f} are needed"
        return ""


def pieces(tensors: Sequence[Tensor]) -> list[tuple[int, int]]:
    """Disjoint ranges ``(address, bytes)`` of whole pages; each tensor that has pages of its own lies within one."""
    page = mmap.PAGESIZE
    storages = [tensor.untyped_storage() for tensor in tensors if has_own_pages(tensor)]
    spans = sorted(
        (storage.data_ptr() // page * page, -(-(storage.data_ptr() + storage.nbytes()) // page) * page)
        for storage in storages
    )
    merged: list[tuple[int, int]] = []
    for start, end in spans:
        if merged and start < merged[-1][1]:
            merged[-1] = (merged[-1][0], max(end, merged[-1][1]))
        else:
            merged.append((start, end))
    return [(start, end - start) for start, end in merged]


def has_own_pages(tensor: Tensor) -> bool:
    """Whether the allocation behind `tensor` is so large that it shares no page with another."""
    return tensor.untyped_storage().nbytes() >= OWN_PAGES
