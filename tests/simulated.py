"""A simulated GPU on the CPU, for what decides where weights are: memory that runs out, copies that take their time.

Device memory is CPU memory in a ledger, by storage, so a tensor is on the device exactly as long as its storage lives.
A copy made aside is not there before it is joined: until then its memory holds NaN. Weights that are not on the device
cannot be computed with.
"""

from __future__ import annotations

import mmap
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from types import SimpleNamespace
from typing import Any
from unittest import mock

import pytest
import torch
from torch import Tensor
from torch.multiprocessing.reductions import StorageWeakRef
from torch.overrides import TorchFunctionMode

from halfframe import pinning
from halfframe.hosts import placement


class SimulatedAccelerator:
    """An `Accelerator` of `capacity` bytes that counts and checks.

    Attributes:
        log: what was asked for, in order.
        peak: most bytes in use at a time, activations included.
        activations: bytes that a forward takes per latent frame.
        pins_left: so many more pins succeed.
        locked: what is page-locked, bytes by address.
        failed_unpins: how often memory was to be unlocked that is not locked.
        stage_fails: whether there is less room for copies aside than `room` says.
    """

    def __init__(self, capacity: int = 1 << 40) -> None:
        self.device = torch.device("cuda", 0)
        self.capacity = capacity
        self.log: list[str] = []
        self.peak = 0
        self.activations = 0
        self.pins_left = 1 << 30
        self.stage_fails = False
        self.locked: dict[int, int] = {}
        self.failed_unpins = 0
        self._storages: list[tuple[StorageWeakRef, int]] = []
        self._most_activations = 0
        self._in_flight = False
        self._page_locked: list[Tensor] = []

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
        copy = torch.empty_like(host)
        nbytes = copy.untyped_storage().nbytes()
        self._take(nbytes)
        self._storages.append((StorageWeakRef(copy.untyped_storage()), nbytes))
        return copy.copy_(host)

    def holds(self, tensor: Tensor) -> bool:
        storage = tensor.untyped_storage()._cdata
        return any(ref.cdata == storage and not ref.expired() for ref, _ in self._storages)

    def room(self) -> int:
        return self.capacity - self.in_use - self._most_activations

    def copy(self, hosts: Sequence[Tensor]) -> Sequence[Tensor]:
        self.log.append("copy")
        self._in_flight = True
        return [self.upload(host) for host in hosts]

    def page_locked(self, host: Tensor) -> Tensor:
        self._page_locked.append(host.clone())
        return self._page_locked[-1]

    def copy_aside(self, hosts: Sequence[Tensor]) -> _Staged:
        self.log.append("copy aside")
        self._in_flight = True
        for host in hosts:
            start, end = host.data_ptr(), host.data_ptr() + host.numel() * host.element_size()
            inside = [at for at, nbytes in self.locked.items() if at <= start and end <= at + nbytes]
            pinned = any(host is tensor for tensor in self._page_locked)
            assert inside or pinned, "a copy aside needs memory that is locked in one piece"
        self._page_locked.clear()
        copies = [self.upload(host) for host in hosts]
        if self.stage_fails:
            raise torch.cuda.OutOfMemoryError("simulated")
        for copy in copies:
            copy.fill_(float("nan")) if copy.is_floating_point() else copy.fill_(-1)
        return _Staged(self, hosts, copies)

    def pin(self, address: int, nbytes: int) -> str:
        assert address % mmap.PAGESIZE == nbytes % mmap.PAGESIZE == 0 < nbytes
        assert all(address + nbytes <= at or at + size <= address for at, size in self.locked.items()), "locked twice"
        self.pins_left -= 1
        if self.pins_left < 0:
            return "operation not supported"
        self.locked[address] = nbytes
        return ""

    def unpin(self, address: int) -> str:
        assert not self._in_flight, "a copy may still be reading this memory"
        if self.locked.pop(address, None) is None:
            self.failed_unpins += 1
            return "not registered"
        return ""

    def synchronize(self) -> None:
        self._in_flight = False

    def give_back(self) -> None:
        self.log.append("give back")


class _Staged:
    def __init__(self, device: SimulatedAccelerator, hosts: Sequence[Tensor], copies: list[Tensor]) -> None:
        self._device, self._hosts, self._copies = device, hosts, copies

    def join(self) -> Sequence[Tensor]:
        self._device.log.append("join")
        for copy, host in zip(self._copies, self._hosts, strict=True):
            copy.copy_(host)
        return self._copies


def own_pages(tensor: Tensor) -> Tensor:
    """A copy of `tensor`, on pages of its own if it is larger than one, as large allocations are."""
    nbytes = tensor.numel() * tensor.element_size()
    if nbytes < mmap.PAGESIZE:
        return tensor.clone()
    memory = torch.frombuffer(mmap.mmap(-1, nbytes), dtype=tensor.dtype)
    return memory.reshape(tensor.shape).copy_(tensor)


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
                parameter.data = device.upload(parameter.data) if there else own_pages(parameter.data)
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

        for parameter in model.parameters():
            parameter.data = own_pages(parameter.data)
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
    """A simulated GPU with room for everything, which pipelines of device type ``cuda`` are preloaded to."""
    simulated = SimulatedAccelerator()
    monkeypatch.setattr(placement, "_accelerator_of", lambda _: simulated)
    monkeypatch.setattr(pinning, "available_host_memory", lambda: 1 << 40)
    monkeypatch.setattr(pinning, "OWN_PAGES", mmap.PAGESIZE)
    with simulated_cuda():
        yield simulated
    assert not simulated.locked, "host memory is still locked"
