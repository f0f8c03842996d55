"""Weights between the host and a simulated device: what is copied, what is shared, and that all comes back."""

from __future__ import annotations

import mmap
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from halfframe import pinning, residency
from halfframe.pinning import PinnedPieces, available_host_memory, pieces
from halfframe.residency import Residency, why_not

from .simulated import SimulatedAccelerator, own_pages

PAGE = mmap.PAGESIZE


class Model(nn.Module):
    """Parameters and buffers in every relation to each other's memory."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(40, 40)
        self.same_object = nn.Linear(40, 40)
        self.same_object.weight = self.first.weight
        self.same_memory = nn.Parameter(self.first.weight.data)
        self.transposed = nn.Parameter(self.first.weight.data.t())
        self.slice_of_a_file = nn.Parameter(torch.randn(100_000)[20_000:30_000].view(100, 100))
        self.register_buffer("table", torch.arange(7), persistent=False)
        self.register_buffer("absent", None)
        self.empty = nn.Parameter(torch.empty(0, 3))
        self.requires_grad_(False)
        own = own_pages(self.first.weight.data)
        self.first.weight.data, self.same_memory.data, self.transposed.data = own, own, own.t()

    def forward(self, x: Tensor) -> Tensor:
        x = self.same_object(self.first(x)) @ self.transposed @ self.same_memory
        return x[:, :7] * self.table + self.slice_of_a_file.sum()


UNIQUE_BYTES = 4 * (1600 + 40 + 40 + 1600 + 10_000) + 8 * 7  # weight, two biases, its transpose, slice, table


@pytest.fixture
def accelerator(monkeypatch: pytest.MonkeyPatch) -> SimulatedAccelerator:
    monkeypatch.setattr(pinning, "available_host_memory", lambda: 1 << 40)
    monkeypatch.setattr(pinning, "OWN_PAGES", PAGE)
    return SimulatedAccelerator()


@pytest.fixture
def model() -> Model:
    torch.manual_seed(0)
    return Model()


def state(module: nn.Module) -> dict[str, Any]:
    """Every parameter and buffer: which object, in which storage, seen how."""
    found: dict[str, Any] = {}
    for path, part in module.named_modules():
        for name, parameter in part._parameters.items():
            if parameter is not None:
                found[f"{path}.{name}"] = (id(parameter), parameter._version, *memory(parameter.data))
        for name, buffer in part._buffers.items():
            found[f"{path}.{name}"] = None if buffer is None else (id(buffer), *memory(buffer))
    return found


def memory(tensor: Tensor) -> tuple[Any, ...]:
    return tensor.untyped_storage()._cdata, tensor.storage_offset(), tuple(tensor.shape), tensor.stride()


def everywhere(module: nn.Module) -> list[Tensor]:
    buffers = [b for part in module.modules() for b in part._buffers.values() if b is not None]
    return [*(parameter.data for _, parameter in module.named_parameters()), *buffers]


@pytest.mark.parametrize("ahead", [False, True])
def test_there_and_back(model: Model, accelerator: SimulatedAccelerator, ahead: bool) -> None:
    before, x = state(model), torch.randn(2, 40)
    expected = model(x)
    weights = Residency(model, accelerator)
    for _ in range(3):
        if ahead:
            assert weights.pin(1 << 40) == ""
            assert weights.stage() == ""
        assert weights.on_host
        assert weights.enter()
        assert weights.aside == ahead
        assert not weights.on_host
        assert all(accelerator.holds(tensor) or not tensor.numel() for tensor in everywhere(model))
        assert torch.equal(model(x), expected)
        assert accelerator.in_use == weights.nbytes == UNIQUE_BYTES
        assert weights.leave()
        assert state(model) == before
        assert accelerator.in_use == 0
    weights.unpin()
    assert not accelerator.locked


def test_weights_that_share_memory_share_a_copy(model: Model, accelerator: SimulatedAccelerator) -> None:
    Residency(model, accelerator).enter()
    assert model.first.weight is model.same_object.weight
    assert memory(model.first.weight.data) == memory(model.same_memory.data)
    assert model.transposed.stride() == (1, 40)


def test_without_room_the_weights_stay_on_the_host(model: Model, accelerator: SimulatedAccelerator) -> None:
    before = state(model)
    accelerator.capacity = UNIQUE_BYTES - 1
    weights = Residency(model, accelerator)
    with pytest.raises(torch.cuda.OutOfMemoryError):
        weights.enter()
    assert state(model) == before
    accelerator.capacity += 1
    assert weights.enter()


@pytest.mark.parametrize("how", ["enter", "leave"])
@pytest.mark.parametrize("n", range(9))
def test_an_interrupt_at_any_write_is_undone(
    model: Model, accelerator: SimulatedAccelerator, monkeypatch: pytest.MonkeyPatch, how: str, n: int
) -> None:
    before, weights = state(model), Residency(model, accelerator)
    if how == "leave":
        weights.enter()
    write, left = residency._Slot.write, [n]

    def interrupted(slot: Any, tensor: Tensor) -> None:
        if left[0] == 0:
            raise KeyboardInterrupt
        left[0] -= 1
        write(slot, tensor)

    monkeypatch.setattr(residency._Slot, "write", interrupted)
    slots = len(residency._slots(model))
    if n < slots:
        with pytest.raises(KeyboardInterrupt):
            getattr(weights, how)()
        assert state(model) != before or n == (0 if how == "enter" else slots)
    monkeypatch.setattr(residency._Slot, "write", write)
    weights.put_back()
    assert state(model) == before
    assert accelerator.in_use == 0


def test_weights_that_somebody_else_placed_are_left_to_them(model: Model, accelerator: SimulatedAccelerator) -> None:
    weights = Residency(model, accelerator)
    assert not weights.leave()
    weights.enter()
    inside = state(model)
    assert not weights.enter()
    assert state(model) == inside
    theirs = accelerator.upload(model.first.bias.data)
    model.first.bias.data = theirs
    inside = state(model)
    assert not weights.leave()
    assert state(model) == inside
    weights.put_back()  # what we know of is out of date, so nothing is put back either
    assert state(model) == inside


@pytest.mark.parametrize("change", [None, "weights", "buffer"])
def test_weights_left_on_the_device_are_compared_before_they_are_dropped(
    model: Model, accelerator: SimulatedAccelerator, change: str | None
) -> None:
    before, weights = state(model), Residency(model, accelerator)
    weights.enter()
    weights.carry()
    if change == "weights":
        model.slice_of_a_file.data[0, 0] += 1
    if change == "buffer":
        model.table[3] = 5
    inside = state(model)
    assert weights.leave() == (change is None)
    assert state(model) == (before if change is None else inside)


def test_copies_of_weights_that_were_exchanged_since_are_not_used(
    model: Model, accelerator: SimulatedAccelerator
) -> None:
    weights = Residency(model, accelerator)
    weights.pin(1 << 40)
    weights.stage()
    model.first.bias.data = torch.full((40,), 3.0)
    assert weights.enter()
    assert not weights.aside
    assert torch.equal(model.first.bias, torch.full((40,), 3.0))
    assert accelerator.in_use == UNIQUE_BYTES
    weights.leave()
    weights.pin(1 << 40)  # of what is there now
    weights.unpin()


def test_copies_aside_that_find_no_room_leave_nothing(model: Model, accelerator: SimulatedAccelerator) -> None:
    weights = Residency(model, accelerator)
    weights.pin(1 << 40)
    accelerator.stage_fails = True
    assert weights.stage() == "OutOfMemoryError: simulated"
    assert not weights.staged
    assert accelerator.in_use == 0
    assert accelerator.log[-1] == "give back"
    weights.unpin()


class FullyShardedDataParallel(nn.Module):
    """A wrapper of the name that FSDP's has."""

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self.module = module


def test_modules_whose_weights_cannot_be_pointed_elsewhere() -> None:
    plain = nn.Sequential(nn.Linear(2, 2))
    assert why_not(plain) == ""
    assert why_not(FullyShardedDataParallel(plain)) == (
        "FullyShardedDataParallel is sharded by FSDP, which places its shards itself"
    )
    assert "sharded by FSDP" in why_not(nn.Sequential(FullyShardedDataParallel(plain)))
    assert "OptimizedModule passes its attributes on" in why_not(torch.compile(plain))  # type: ignore[arg-type]

    class Packed(nn.Parameter):
        pass

    packed = nn.Linear(2, 2)
    packed.weight = Packed(torch.zeros(2, 2))
    assert why_not(packed) == "weight of Linear is a Packed, which moves in ways of its own"
    plain(torch.ones(1, 2)).sum().backward()
    assert why_not(plain) == "0.weight of Sequential has a gradient"


def test_fsdp2_is_recognised(tmp_path: Path) -> None:
    """The real `fully_shard`, in a group of one process."""
    from torch import distributed

    fsdp = pytest.importorskip("torch.distributed.fsdp")
    if not hasattr(fsdp, "fully_shard"):
        pytest.skip("this version of torch has no fully_shard")
    distributed.init_process_group("gloo", init_method=f"file://{tmp_path / 'store'}", rank=0, world_size=1)
    try:
        mesh = distributed.init_device_mesh("cpu", (1,))
        assert "sharded by FSDP" in why_not(fsdp.fully_shard(nn.Linear(4, 4), mesh=mesh))
    finally:
        distributed.destroy_process_group()


def large(*counts: int) -> list[Tensor]:
    return [own_pages(torch.zeros(count)) for count in counts]


@pytest.mark.usefixtures("accelerator")
def test_pieces_are_whole_pages_that_hold_each_large_tensor_once() -> None:
    tensors = large(1024, 1025, 5000, 3 * 1024)
    views = [tensors[2][7:9], tensors[2].view(50, 100).t()]
    small = torch.zeros(3)
    found = pieces([*tensors, *views, small])
    assert len(found) == len(tensors)
    for tensor in (*tensors, *views):
        start = tensor.data_ptr()
        assert sum(at <= start and start + 4 * tensor.numel() <= at + nbytes for at, nbytes in found) == 1
    assert all(at % PAGE == nbytes % PAGE == 0 for at, nbytes in found)
    assert sum(nbytes for _, nbytes in found) == PAGE * (1 + 2 + 5 + 3)
    assert pieces([small]) == []


def test_locking_goes_on_piece_by_piece(accelerator: SimulatedAccelerator) -> None:
    locked = PinnedPieces(large(1024, 1024, 1024, 1024, 1024), accelerator)
    seen = []
    while not locked.complete:
        assert locked.advance(2 * PAGE) == ""
        seen.append(len(accelerator.locked))
    assert seen == [2, 4, 5]
    accelerator.copy([torch.zeros(1)])  # may still be reading; the simulation refuses to unlock then
    locked.close()
    assert not accelerator.locked
    locked.close()
    assert accelerator.failed_unpins == 0


def test_locking_that_fails_midway_unlocks_all_and_stays_failed(accelerator: SimulatedAccelerator) -> None:
    accelerator.pins_left = 2
    locked = PinnedPieces(large(1024, 1024, 1024), accelerator)
    assert "of host memory failed: operation not supported" in locked.advance(1 << 40)
    assert (accelerator.locked, accelerator.failed_unpins) == ({}, 0)
    accelerator.pins_left = 9
    assert "failed" in locked.advance(1 << 40)
    assert not locked.complete


@pytest.mark.parametrize(
    ("name", "value", "reason"),
    [
        ("HOST_RESERVE", 1 << 41, r"1024.0 GiB of host memory is available, 2048.0 are needed"),
        ("PIECE", 2 * PAGE, r"of weights are one allocation, as where a checkpoint file is mapped"),
        ("OWN_PAGES", 1 << 30, r"of weights are in allocations too small to be page-locked"),
    ],
)
def test_what_is_not_locked(
    accelerator: SimulatedAccelerator, monkeypatch: pytest.MonkeyPatch, name: str, value: int, reason: str
) -> None:
    tensors = large(3 * 1024)
    if name == "OWN_PAGES":
        monkeypatch.setattr(pinning, "PIECE", 2 * PAGE)
    monkeypatch.setattr(pinning, name, value)
    locked = PinnedPieces(tensors, accelerator)
    assert reason in locked.advance(1 << 40)
    assert not locked.complete
    assert not accelerator.locked


def test_memory_is_needed_beside_the_reserve(accelerator: SimulatedAccelerator, monkeypatch: Any) -> None:
    tensors = large(3 * 1024)
    for available, refused in (
        (pinning.HOST_RESERVE + 3 * PAGE - 1, True),
        (pinning.HOST_RESERVE + 3 * PAGE, False),
    ):
        monkeypatch.setattr(pinning, "available_host_memory", lambda available=available: available)
        locked = PinnedPieces(tensors, accelerator)
        assert bool(locked.advance(1 << 40)) == refused
        locked.close()


def test_host_memory_as_the_system_tells_it(monkeypatch: pytest.MonkeyPatch) -> None:
    def lines(text: str) -> None:
        monkeypatch.setattr(Path, "read_text", lambda *_, **__: text)

    lines("MemTotal: 99 kB\nMemFree: 3 kB\nMemAvailable:   12 kB\nBuffers: 1 kB\n")
    assert available_host_memory() == 12 * 1024
    lines("MemTotal: 99 kB\n")
    sizes = {"SC_AVPHYS_PAGES": 5, "SC_PAGE_SIZE": 4096}
    monkeypatch.setattr("os.sysconf", lambda name: sizes[name])
    assert available_host_memory() == 5 * 4096
    monkeypatch.delattr("os.sysconf")
    assert available_host_memory() == 0
