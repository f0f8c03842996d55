"""Weights between the host and a simulated device: what is copied, what is shared, and that all comes back."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from halfframe.offload import residency
from halfframe.offload.residency import Residency, why_not

from ..simulated import SimulatedAccelerator, copying_threads


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
        self.register_buffer("with_gaps", torch.randn(7, 2)[:, 0])
        self.register_buffer("scalar", torch.tensor(3.0))
        self.empty = nn.Parameter(torch.empty(0, 3))
        self.requires_grad_(False)

    def forward(self, x: Tensor) -> Tensor:
        x = self.same_object(self.first(x)) @ self.transposed @ self.same_memory
        return x[:, :7] * self.table + self.slice_of_a_file.sum() * self.with_gaps * self.scalar


# Weight, two biases, its transpose, slice, two buffers; table.
UNIQUE_BYTES = 4 * (1600 + 40 + 40 + 1600 + 10_000 + 7 + 1) + 8 * 7


@pytest.fixture
def accelerator() -> Iterator[SimulatedAccelerator]:
    simulated = SimulatedAccelerator()
    yield simulated
    simulated.gate.set()
    assert not copying_threads()


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
            weights.stage()
            assert weights.trouble == ""
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


def test_in_inference_mode_and_out_of_it(model: Model, accelerator: SimulatedAccelerator) -> None:
    """Copies are tensors of the mode that they are asked for in; the thread that fills them has a mode of its own."""
    before, x = state(model), torch.randn(2, 40)
    expected = model(x)
    weights = Residency(model, accelerator)
    for inference in (True, False, True):
        with torch.inference_mode(inference):
            weights.stage()
            assert weights.enter()
            assert weights.aside
            assert torch.equal(model(x), expected)
            assert weights.leave()
        assert state(model) == before


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
    weights.stage()
    model.first.bias.data = torch.full((40,), 3.0)
    assert weights.enter()
    assert not weights.aside
    assert weights.trouble == "the weights were exchanged after it had begun to come in"
    assert torch.equal(model.first.bias, torch.full((40,), 3.0))
    assert accelerator.in_use == UNIQUE_BYTES


@pytest.mark.parametrize("trouble", ["room", "buffers", "thread"])
def test_copies_aside_that_cannot_begin_leave_nothing(
    model: Model, accelerator: SimulatedAccelerator, monkeypatch: pytest.MonkeyPatch, trouble: str
) -> None:
    def no_thread(_: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    weights = Residency(model, accelerator)
    if trouble == "room":
        accelerator.stage_fails, reason = True, "OutOfMemoryError: simulated"
    elif trouble == "buffers":
        accelerator.nothing_page_locked = reason = "operation not supported"
    else:
        monkeypatch.setattr(threading.Thread, "start", no_thread)
        reason = "can't start new thread"
    weights.stage()
    assert weights.trouble == reason
    assert not weights.staged
    assert accelerator.in_use == 0
    assert accelerator.log[-1] == "give back"
    assert weights.enter()
    assert not weights.aside


@pytest.mark.parametrize("n", range(12))
def test_copies_aside_that_fail_are_made_again(model: Model, accelerator: SimulatedAccelerator, n: int) -> None:
    """Wherever it fails, nothing of the first try takes memory any more when the second one begins."""
    before, x = state(model), torch.randn(2, 40)
    expected = model(x)
    accelerator.capacity, accelerator.sends_left = UNIQUE_BYTES, n
    weights = Residency(model, accelerator)
    weights.stage()
    assert weights.enter()
    assert (weights.aside, weights.trouble) == (False, "simulated: copying failed")
    assert torch.equal(model(x), expected)
    assert weights.leave()
    assert state(model) == before
    accelerator.sends_left, weights.trouble = 1 << 30, ""
    weights.stage()
    assert weights.enter()
    assert (weights.aside, weights.trouble) == (True, "")
    assert torch.equal(model(x), expected)


def interrupted(seconds: float) -> threading.Timer:
    """Interrupt the main thread in so many seconds, as Ctrl-C does."""
    main = threading.main_thread().ident
    assert main is not None
    timer = threading.Timer(seconds, signal.pthread_kill, (main, signal.SIGINT))
    timer.start()
    return timer


def test_an_interrupt_while_copies_are_waited_for(model: Model, accelerator: SimulatedAccelerator) -> None:
    before, weights = state(model), Residency(model, accelerator)
    for wait in (weights.enter, weights.drop_staged):
        accelerator.gate.clear()
        accelerator.at_gate.clear()
        weights.stage()
        assert accelerator.at_gate.wait(10)
        timer = interrupted(0.1)
        with pytest.raises(KeyboardInterrupt):
            wait()
        timer.join()
        assert weights.staged  # not lost
        assert state(model) == before
        accelerator.gate.set()
        weights.drop_staged()
        assert not copying_threads()
        assert accelerator.in_use == 0
    weights.stage()
    assert weights.enter()
    assert weights.aside


def test_copies_that_are_not_needed_stop(model: Model, accelerator: SimulatedAccelerator) -> None:
    weights = Residency(model, accelerator)
    accelerator.gate.clear()
    weights.stage()
    assert accelerator.at_gate.wait(10)
    threading.Timer(0.1, accelerator.gate.set).start()
    weights.drop_staged()
    sent = (1 << 30) - accelerator.sends_left
    assert not copying_threads()
    assert sent == (1 << 30) - accelerator.sends_left < 5  # what goes into one buffer, of eleven
    assert accelerator.in_use == 0
    assert weights.enter()
    weights.leave()


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
