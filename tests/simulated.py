"""A simulated GPU on the CPU, for what decides where weights are: memory that runs out, copies that take their time.

Device memory is CPU memory in a ledger, by storage, so a tensor is on the device exactly as long as its storage lives.
A copy made aside is not there before it is joined: until then its memory holds NaN. Weights that are not on the device
cannot be computed with.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from types import SimpleNamespace
from typing import Any
from unittest import mock

import pytest
import torch
from torch import Tensor
from torch.multiprocessing.reductions import StorageWeakRef
from torch.overrides import TorchFunctionMode

from halfframe.hosts import placement
from halfframe.offload.staging import Copying, Ring, as_bytes


class SimulatedLane:
    """A stream that puts everything off for as long as it may.

    A buffer is read no sooner than that is waited for, and copies have what was sent no sooner than they are met.

    Args:
        before_send: called before each piece is sent; may raise.
    """

    def __init__(self, before_send: Callable[[], None] = lambda: None) -> None:
        self._before_send = before_send
        self._targets: list[Tensor] = []
        self._reading = _Reading()
        self.wait = self._reading.read_all  # not a method: whoever keeps it must not keep the copies

    def send(self, source: Tensor, target: Tensor) -> None:
        assert source.dtype == target.dtype == torch.uint8
        assert source.shape == target.shape == (source.numel(),)
        self._before_send()
        self._reading.sources.append(source)
        self._targets.append(target)

    def mark(self) -> Callable[[], None]:
        return partial(self._reading.read, len(self._targets))

    def meet(self, copies: Sequence[Tensor]) -> None:
        self.wait()
        with torch.inference_mode():
            for target, data in zip(self._targets, self._reading.data, strict=True):
                target.copy_(data)
        self._targets.clear()


class _Reading:
    """What a lane's buffers held when they were read."""

    def __init__(self) -> None:
        self.sources: list[Tensor] = []
        self.data: list[Tensor] = []
        self._lock = threading.Lock()

    def read(self, count: int) -> None:
        with self._lock:
            self.data += [source.clone() for source in self.sources[len(self.data) : count]]

    def read_all(self) -> None:
        self.read(len(self.sources))


class SimulatedAccelerator:
    """An `Accelerator` of `capacity` bytes that counts and checks.

    Attributes:
        log: what was asked for, in order.
        peak: most bytes in use at a time, activations included.
        activations: bytes that a forward takes per latent frame.
        stage_fails: whether there is less room for copies aside than `room` says.
        nothing_page_locked: why no host memory can be page-locked; empty if it can.
        sends_left: so many more pieces can be copied aside.
        gate: closed, copies aside come to a stand.
        at_gate: whether any got that far.
        ring: what copies go through.
    """

    def __init__(self, capacity: int = 1 << 40) -> None:
        self.device = torch.device("cuda", 0)
        self.capacity = capacity
        self.log: list[str] = []
        self.peak = 0
        self.activations = 0
        self.stage_fails = False
        self.nothing_page_locked = ""
        self.sends_left = 1 << 30
        self.gate = threading.Event()
        self.gate.set()
        self.at_gate = threading.Event()
        self.ring: Ring | None = None
        self._storages: list[tuple[StorageWeakRef, int]] = []
        self._most_activations = 0

    @property
    def in_use(self) -> int:
        self._storages = [(ref, nbytes) for ref, nbytes in self._storages if not ref.expired()]
        return sum(nbytes for _, nbytes in self._storages)

    def compute(self, latent_frames: int) -> None:
        """A forward over so many frames takes its memory, and gives it back."""
        needed = latent_frames * self.activations
        self._most_activations = max(self._most_activations, needed)
        self._take(needed)

    def _take(self, nbytes: int) -> None:
        self.peak = max(self.peak, self.in_use + nbytes)
        if self.in_use + nbytes > self.capacity:
            raise torch.cuda.OutOfMemoryError(f"simulated: {self.in_use} of {self.capacity} in use, {nbytes} asked for")

    def upload(self, host: Tensor) -> Tensor:
        return self._memory_for(host).copy_(host)

    def _memory_for(self, host: Tensor) -> Tensor:
        copy = torch.empty_like(host)
        nbytes = copy.untyped_storage().nbytes()
        self._take(nbytes)
        self._storages.append((StorageWeakRef(copy.untyped_storage()), nbytes))
        return copy

    def holds(self, tensor: Tensor) -> bool:
        storage = tensor.untyped_storage()._cdata
        return any(ref.cdata == storage and not ref.expired() for ref, _ in self._storages)

    def room(self) -> int:
        return self.capacity - self.in_use - self._most_activations

    def copy(self, hosts: Sequence[Tensor]) -> Sequence[Tensor]:
        self.log.append("copy")
        if self.nothing_page_locked:
            return [self.upload(host) for host in hosts]
        copies, lane = self._blank(hosts), SimulatedLane()
        self._page_locked().send(hosts, copies, lane)
        lane.meet(copies)
        return copies

    def copy_aside(self, hosts: Sequence[Tensor]) -> Copying:
        self.log.append("copy aside")
        ring, copies = self._page_locked(), self._blank(hosts)
        if self.stage_fails:
            raise torch.cuda.OutOfMemoryError("simulated")
        return _Logged(self.log, ring, SimulatedLane(self._before_send), hosts, copies)

    def _page_locked(self) -> Ring:
        if self.nothing_page_locked:
            raise RuntimeError(self.nothing_page_locked)
        if self.ring is None:
            self.ring = Ring([torch.zeros(5000, dtype=torch.uint8) for _ in range(3)])
        return self.ring

    def _blank(self, hosts: Sequence[Tensor]) -> list[Tensor]:
        copies = [self.upload(host) if as_bytes(host) is None else self._memory_for(host) for host in hosts]
        for host, copy in zip(hosts, copies, strict=True):
            if as_bytes(host) is not None:
                copy.fill_(float("nan")) if copy.is_floating_point() else copy.fill_(-1)
        return copies

    def _before_send(self) -> None:
        self.at_gate.set()
        self.gate.wait()
        self.sends_left -= 1
        if self.sends_left < 0:
            raise RuntimeError("simulated: copying failed")

    def give_back(self) -> None:
        self.log.append("give back")

    def close(self) -> None:
        self.ring = None


class _Logged(Copying):
    def __init__(self, log: list[str], *args: Any) -> None:
        super().__init__(*args)
        self._log = log

    def join(self) -> Sequence[Tensor]:
        self._log.append("join")
        return super().join()


def copying_threads() -> list[threading.Thread]:
    """Threads that still copy, once those that are over had the time to end."""
    for _ in range(200):
        found = [thread for thread in threading.enumerate() if thread.name == "halfframe-copying"]
        if not found:
            break
        time.sleep(0.01)
    return found


def put_on(pipe: Any, device: SimulatedAccelerator) -> None:
    """Have the experts of an official pipeline live between the host, where they are now, and `device`.

    Their own ``to`` and ``cpu`` copy in both directions, as upstream's do, and log that.
    """
    for name in ("high_noise_model", "low_noise_model"):
        model = getattr(pipe, name)
        cls: Any = type(model)
        short = name.split("_")[0]

        def move(model: Any, there: bool, short: str = short) -> Any:
            moving = [p for p in dict(model.named_parameters()).values() if device.holds(p.data) != there]
            if moving:
                device.log.append(f"{short}: own copy {'in' if there else 'out'}")
            for parameter in moving:
                parameter.data = device.upload(parameter.data) if there else parameter.data.clone()
            return model

        def to(self: Any, *args: Any, move: Any = move, cls: Any = cls, **kwargs: Any) -> Any:
            if args and isinstance(args[0], str | torch.device):
                return move(self, torch.device(args[0]).type == "cuda")
            return cls.to(self, *args, **kwargs)

        def parameters(self: Any) -> Iterator[Any]:
            first = next(parameter for _, parameter in self.named_parameters())
            yield SimpleNamespace(device=torch.device("cuda", 0) if device.holds(first.data) else torch.device("cpu"))

        def forward(self: Any, x: list[Tensor], *args: Any, cls: Any = cls, short: str = short, **kwargs: Any) -> Any:
            if not all(device.holds(parameter.data) for _, parameter in self.named_parameters()):
                raise RuntimeError(f"expected all weights of the {short}-noise expert on the device")
            device.log.append(f"{short} forward")
            device.compute(x[0].shape[1])
            return cls.forward(self, x, *args, **kwargs)

        methods = {"to": to, "cpu": lambda self, move=move: move(self, False), "parameters": parameters}
        model.__class__ = type(cls.__name__, (cls,), {**methods, "forward": forward})
    pipe.device = device.device
    pipe.init_on_cpu = True


class _CudaIsCpu(TorchFunctionMode):
    """Everything else that upstream puts on its device stays on the CPU."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        def here(value: Any) -> Any:
            return torch.device("cpu") if isinstance(value, torch.device) and value.type == "cuda" else value

        if func is torch.device:  # what it is asked for is a name, not a place
            return func(*args, **(kwargs or {}))
        return func(*map(here, args), **{name: here(value) for name, value in (kwargs or {}).items()})


@contextmanager
def simulated_cuda() -> Iterator[None]:
    """Let upstream's loop run with a device of type ``cuda`` on a machine without one."""
    plain = torch.Generator
    with (
        mock.patch.object(torch, "Generator", side_effect=lambda device=None: plain()),
        mock.patch.object(torch.cuda, "synchronize", return_value=None),
        _CudaIsCpu(),
    ):
        yield


@pytest.fixture
def device(monkeypatch: pytest.MonkeyPatch) -> Iterator[SimulatedAccelerator]:
    """A simulated GPU with room for everything, which pipelines of device type ``cuda`` are prefetched to."""
    simulated = SimulatedAccelerator()
    monkeypatch.setattr(placement, "_accelerator_of", lambda _: simulated)
    with simulated_cuda():
        yield simulated
    assert simulated.ring is None, "host memory is still page-locked"
    assert not copying_threads()
