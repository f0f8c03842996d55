"""From host memory to a device by way of a few page-locked buffers, and in a thread beside the computation.

A device copies while it computes only from memory that is page-locked. The weights' own memory is not: locking it in
place would lock pages that hold other things too, and a copy of such a thing, only part of it locked, fails. Knows no
device: what is done there is a `Lane`'s part.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Protocol

import torch
from torch import Tensor

__all__ = ["BUFFERS", "BUFFER_BYTES", "Copying", "Lane", "Ring", "as_bytes", "in_one_line", "page_locked_ring"]

BUFFER_BYTES = 64 << 20
"""Size of a page-locked buffer."""
BUFFERS = 4
"""How many of them an accelerator has: 256 MiB of host memory, whatever is copied."""


class Lane(Protocol):
    """Where copies to a device are made, one after the other: a stream. A ring keeps it; it keeps no tensors."""

    def send(self, source: Tensor, target: Tensor) -> None:
        """Begin to copy page-locked bytes to the device; both 1-d, uint8 and as long as each other."""
        ...

    def mark(self) -> Callable[[], None]:
        """A function that blocks until all that was sent up to now is copied."""
        ...

    def wait(self) -> None:
        """Block until all that was sent is copied."""
        ...

    def meet(self, copies: Sequence[Tensor]) -> None:
        """Have the calling thread's stream wait for all that was sent, and use `copies` from there on."""
        ...


class Ring:
    """Page-locked buffers that are filled in turn, each once the device has read what it was filled with before.

    Threads take turns too: a second one waits until all that the first one copies is on its way.

    Args:
        buffers: page-locked, 1-d, uint8, of one size.
    """

    def __init__(self, buffers: Sequence[Tensor]) -> None:
        self._buffers = buffers
        self._read: list[Callable[[], None]] = [lambda: None for _ in buffers]
        self._turn = 0
        self._lock = threading.Lock()

    def send(
        self,
        hosts: Sequence[Tensor],
        copies: Sequence[Tensor],
        lane: Lane,
        stopped: Callable[[], bool] = lambda: False,
    ) -> None:
        """Begin to copy the bytes of each host tensor to those of its copy, of the same shape, strides and dtype.

        Returns once that has begun, or early if it is `stopped`, which is asked before each buffer is filled. The hosts
        are not read any more then, save those that are page-locked: they go without a buffer. Tensors that `as_bytes`
        does not show are left out.
        """
        with self._lock, torch.inference_mode():  # the copies may be tensors of that mode, and this another thread
            for load in _loads(hosts, copies, lane, self._buffers[0].numel()):
                if stopped():
                    return
                self._fill(load, lane)

    def _fill(self, load: Sequence[tuple[Tensor, Tensor]], lane: Lane) -> None:
        turn = self._turn
        self._turn = (turn + 1) % len(self._buffers)
        self._read[turn]()
        self._read[turn] = lane.wait  # until there is a mark: an exception may come anywhere
        start = 0
        for source, target in load:
            part = self._buffers[turn][start : start + source.numel()]
            lane.send(part.copy_(source), target)
            start += source.numel()
        self._read[turn] = lane.mark()


def _loads(
    hosts: Sequence[Tensor], copies: Sequence[Tensor], lane: Lane, size: int
) -> Iterator[list[tuple[Tensor, Tensor]]]:
    """Bytes and where they go, in loads of `size` bytes, the last one of fewer; what is page-locked is sent at once."""
    load: list[tuple[Tensor, Tensor]] = []
    left = size
    for host, copy in zip(hosts, copies, strict=True):
        source, target = as_bytes(host), as_bytes(copy)
        if source is None or target is None or not source.numel():
            continue
        if host.is_pinned():
            lane.send(source, target)
            continue
        start = 0
        while start < source.numel():
            end = min(start + left, source.numel())
            load.append((source[start:end], target[start:end]))
            left -= end - start
            start = end
            if not left:
                yield load
                load, left = [], size
    if load:
        yield load


def as_bytes(tensor: Tensor) -> Tensor | None:
    """The memory of `tensor` as 1-d uint8; None unless its elements lie side by side, each once, and are plain."""
    if type(tensor) is not Tensor or tensor.layout is not torch.strided:
        return None
    if tensor.is_quantized or tensor.is_conj() or tensor.is_neg():
        return None
    if torch.empty_like(tensor, device="meta").stride() != tensor.stride():  # kept where there is no gap or overlap
        return None
    return tensor.as_strided((tensor.numel(),), (1,)).view(torch.uint8)


def page_locked_ring() -> Ring:
    """A ring of `BUFFERS` buffers; PyTorch owns their memory, and keeps it for its next use once the ring is gone.

    Raises:
        RuntimeError: so much host memory cannot be page-locked.
    """
    available, needed = _available_host_memory(), BUFFERS * BUFFER_BYTES
    if available is not None and available < needed:
        raise RuntimeError(f"{available >> 20} MiB of host memory are available, {needed >> 20} are needed")
    return Ring([torch.empty(BUFFER_BYTES, dtype=torch.uint8, device="cpu", pin_memory=True) for _ in range(BUFFERS)])


def _available_host_memory() -> int | None:
    """Bytes that the operating system can hand out without swapping, if it says so."""
    try:
        lines = Path("/proc/meminfo").read_text(encoding="ascii").splitlines()
    except OSError:
        return None
    return next((int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable:")), None)


class Copying:
    """Copies that a thread makes by way of a ring: a `halfframe.offload.accelerator.StagedCopies`.

    Args:
        ring: what they go through.
        lane: where they are made.
        hosts: what is copied; kept until the copies are joined or stopped.
        copies: where to, one for each.
    """

    def __init__(self, ring: Ring, lane: Lane, hosts: Sequence[Tensor], copies: Sequence[Tensor]) -> None:
        self._ring = ring
        self._lane = lane
        self._hosts = hosts
        self._copies = copies
        self._failure = ""
        self._stopped = False
        self._busy = threading.Lock()
        self._over = threading.Event()  # not Thread.join: interrupted, that takes a running thread for a finished one

    def begin(self) -> None:
        """Start the thread.

        Raises:
            RuntimeError: no thread can be started.
        """
        try:
            threading.Thread(target=self._run, name="halfframe-copying").start()
        except BaseException:  # there may be a thread all the same
            self._stopped = True
            self._over.set()
            raise

    def join(self) -> Sequence[Tensor]:
        """The copies, once all of them are on their way; the calling thread's stream waits until they are made.

        Raises:
            RuntimeError: not all of them could be made.
        """
        self._over.wait()
        if self._failure or self._stopped:
            raise RuntimeError(self._failure or "the copies were stopped")
        self._lane.meet(self._copies)
        copies, self._hosts, self._copies = self._copies, (), ()  # the copying thread may still be ending
        return copies

    def stop(self) -> None:
        """Let go of hosts and copies, once the thread has done with them; call it again if it was interrupted."""
        self._stopped = True
        with self._busy:  # a thread that comes here only now finds that it is stopped
            self._hosts = self._copies = ()

    def _run(self) -> None:
        with self._busy:
            try:
                self._ring.send(self._hosts, self._copies, self._lane, lambda: self._stopped)
            except BaseException as error:  # its text only: its traceback would keep the copies
                self._failure = in_one_line(error)
            self._over.set()


def in_one_line(error: BaseException) -> str:
    """What `error` says, and its type unless it is a plain RuntimeError."""
    text = str(error).partition("\n")[0]
    return text if type(error) is RuntimeError else f"{type(error).__name__}: {text}"
