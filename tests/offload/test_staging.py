"""Copies by way of a ring of buffers, on a simulated stream that reads them as late as it may."""

from __future__ import annotations

import threading
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from halfframe.offload import staging
from halfframe.offload.staging import BUFFER_BYTES, BUFFERS, Copying, Ring, as_bytes, in_one_line, page_locked_ring

from ..simulated import SimulatedLane, copying_threads

DTYPES = (torch.uint8, torch.bool, torch.int16, torch.bfloat16, torch.float32, torch.float64, torch.complex64)


def ring_of(count: int, size: int) -> Ring:
    return Ring([torch.zeros(size, dtype=torch.uint8) for _ in range(count)])


def random(shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
    count = torch.Size(shape).numel() * dtype.itemsize
    values = torch.randint(0, 2 if dtype is torch.bool else 256, (count,), dtype=torch.uint8)
    return values.view(dtype).reshape(shape) if count else torch.empty(shape, dtype=dtype)


def bits(tensor: Tensor) -> Tensor:
    """All that is in `tensor`, so that NaN equals NaN."""
    return tensor.contiguous().reshape(-1).view(torch.uint8)


@st.composite
def hosts(draw: st.DrawFn) -> list[Tensor]:
    """Dense tensors of any dtype and size, some transposed, some views into a larger memory."""
    found = []
    for _ in range(draw(st.integers(0, 6))):
        shape = tuple(draw(st.lists(st.integers(0, 9), max_size=3)))
        offset = draw(st.integers(0, 3))
        memory = random((offset + torch.Size(shape).numel(),), draw(st.sampled_from(DTYPES)))
        tensor = memory[offset:].view(shape)
        found.append(tensor.permute(draw(st.permutations(range(len(shape))))))
    return found


def blank(tensors: list[Tensor]) -> list[Tensor]:
    return [torch.empty_like(tensor).fill_(1) for tensor in tensors]


@settings(max_examples=300, deadline=None)
@given(
    batches=st.lists(hosts(), min_size=1, max_size=3),
    count=st.integers(1, 4),
    size=st.integers(1, 70),
    fails=st.lists(st.integers(0, 60), max_size=2),
)
def test_everything_arrives_whatever_the_buffers_and_whatever_failed_before(
    batches: list[list[Tensor]], count: int, size: int, fails: list[int]
) -> None:
    """Only if each byte is sent once, and a buffer is filled again only after it was read."""
    ring, under_way = ring_of(count, size), []
    for left in fails:
        lane = SimulatedLane(fail_after(left))
        try:
            ring.send(batches[0], blank(batches[0]), lane)
        except ZeroDivisionError:
            continue
    for batch in batches:
        lane, copies = SimulatedLane(), blank(batch)
        ring.send(batch, copies, lane)
        under_way.append((batch, copies, lane))
    for batch, copies, lane in under_way:  # not before all was sent: one batch's buffers are another's
        lane.meet(copies)
        for host, copy in zip(batch, copies, strict=True):
            assert (copy.dtype, copy.shape, copy.stride()) == (host.dtype, host.shape, host.stride())
            assert torch.equal(bits(copy), bits(host))


def fail_after(left: int) -> Any:
    rest = iter(range(left))

    def before_send() -> None:
        if next(rest, None) is None:
            raise ZeroDivisionError

    return before_send


@pytest.mark.parametrize("count", [1, 2, 4])
def test_no_buffer_is_waited_for_before_all_are_in_use(count: int) -> None:
    lane, tensors = SimulatedLane(), [torch.zeros(80, dtype=torch.uint8)]
    ring_of(count, 8).send(tensors, blank(tensors), lane)
    assert len(lane._reading.data) == 10 - count


def test_a_buffer_whose_copy_was_interrupted_is_not_filled_before_it_was_read() -> None:
    """Between sending from a buffer and marking that, an exception may come as well."""
    ring, lane = ring_of(1, 8), SimulatedLane()
    lane.mark = fail_after(0)  # type: ignore[method-assign]
    first = [torch.arange(8, dtype=torch.uint8)]
    copies = blank(first)
    with pytest.raises(ZeroDivisionError):
        ring.send(first, copies, lane)
    ring.send([torch.zeros(8)], [torch.zeros(8)], SimulatedLane())
    lane.meet(copies)
    assert torch.equal(copies[0], first[0])


@given(size=st.integers(1, 40), after=st.integers(0, 5))
def test_stopped_between_two_buffers(size: int, after: int) -> None:
    ring, lane = ring_of(2, size), SimulatedLane()
    tensors = [random((n,), torch.uint8) for n in (1, 30, 7, 100)]
    copies, asked = blank(tensors), iter(range(after))
    ring.send(tensors, copies, lane, lambda: next(asked, None) is None)
    lane.meet(copies)
    expected, seen = torch.cat(tensors), torch.cat(copies)
    done = min(after * size, len(expected))
    assert torch.equal(seen[:done], expected[:done])
    assert (seen[done:] == 1).all()
    lane = SimulatedLane()
    ring.send(tensors, copies, lane)
    lane.meet(copies)
    assert torch.equal(torch.cat(copies), expected)


@pytest.mark.filterwarnings("ignore:torch.quantize_per_tensor")
def test_bytes_of_what_lies_side_by_side_only() -> None:
    x = torch.arange(24.0).view(4, 6)
    dense = [x, x.t(), x[1:3], x.view(2, 2, 6).permute(2, 0, 1), x[0, 0], x[:0], x[:, :1].view(4, 1)[2:3], x[:1, :1]]
    for tensor in dense:
        assert (seen := as_bytes(tensor)) is not None
        assert seen.shape == (tensor.numel() * 4,)
        assert not tensor.numel() or seen.data_ptr() == tensor.data_ptr()

    class Kind(torch.Tensor):
        pass

    complex_one = torch.zeros(3, dtype=torch.complex64)
    others = [x[:, ::2], x[:, :2], x[:1].expand(3, 6), torch.zeros(1).expand(4), complex_one.conj(), x.to_sparse()]
    others += [complex_one.conj().imag, x.as_subclass(Kind), torch.quantize_per_tensor(x, 0.1, 0, torch.qint8)]
    for tensor in others:
        assert as_bytes(tensor) is None


def test_what_has_no_such_bytes_is_left_out() -> None:
    gaps, lane = torch.arange(12.0)[::2], SimulatedLane()
    copies = [torch.zeros(6)]
    ring_of(1, 8).send([gaps], copies, lane)
    lane.meet(copies)
    assert torch.equal(copies[0], torch.zeros(6))


def test_what_is_page_locked_goes_without_a_buffer(monkeypatch: pytest.MonkeyPatch) -> None:
    locked, other = torch.arange(100.0), torch.arange(50.0)
    monkeypatch.setattr(Tensor, "is_pinned", lambda tensor: tensor is locked)
    lane, copies = SimulatedLane(), blank([locked, other])
    sources: list[int] = []
    send = lane.send
    lane.send = lambda source, target: (sources.append(source.data_ptr()), send(source, target))[1]  # type: ignore[method-assign, func-returns-value]
    ring_of(2, 64).send([locked, other], copies, lane)
    lane.meet(copies)
    assert [torch.equal(copy, host) for copy, host in zip(copies, (locked, other), strict=True)] == [True, True]
    assert sources[0] == locked.data_ptr()
    assert len(sources) == 1 + -(-200 // 64)


def test_threads_take_turns() -> None:
    """Two at one ring, each on its own stream."""
    ring, done = ring_of(2, 50), []

    def work(seed: int) -> None:
        for n in range(30):
            tensors, lane = [torch.full((n * seed,), seed, dtype=torch.int32) for _ in range(5)], SimulatedLane()
            copies = blank(tensors)
            ring.send(tensors, copies, lane)
            lane.meet(copies)
            done.append(all(map(torch.equal, tensors, copies)))

    threads = [threading.Thread(target=work, args=(seed,)) for seed in (1, 2, 3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert done == [True] * 90


def test_copying_in_a_thread() -> None:
    tensors = [random((300,), torch.float32), torch.tensor(3)]
    copying = Copying(ring_of(2, 64), SimulatedLane(), tensors, blank(tensors))
    copying.begin()
    copies = copying.join()
    assert [torch.equal(bits(copy), bits(host)) for copy, host in zip(copies, tensors, strict=True)] == [True, True]
    assert not copying._copies  # whoever still holds it does not hold the device's memory
    assert not copying_threads()


@pytest.mark.parametrize("error", [ValueError("of ours\nand more"), SystemExit(3), RuntimeError("plain")])
def test_an_error_in_the_thread_is_told_when_its_copies_are_joined(error: BaseException) -> None:
    def fail() -> None:
        raise error

    tensors = [torch.zeros(3)]
    copying = Copying(ring_of(1, 64), SimulatedLane(fail), tensors, blank(tensors))
    copying.begin()
    with pytest.raises(RuntimeError) as told:
        copying.join()
    assert str(told.value) == in_one_line(error)
    assert told.value.__context__ is None  # whose traceback would keep the copies
    copying.stop()


def test_copying_that_was_stopped_before_it_began() -> None:
    lane, tensors = SimulatedLane(fail_after(0)), [torch.zeros(3)]
    copying = Copying(ring_of(1, 64), lane, tensors, blank(tensors))
    copying.stop()
    copying.begin()
    with pytest.raises(RuntimeError, match="the copies were stopped"):
        copying.join()
    copying.stop()


def test_a_thread_that_comes_after_its_start_was_interrupted(monkeypatch: pytest.MonkeyPatch) -> None:
    """``Thread.start`` waits for the thread, and may be interrupted there: then there is one nobody waited for."""
    late: list[threading.Thread] = []

    def start(thread: threading.Thread) -> None:
        late.append(thread)
        raise KeyboardInterrupt

    lane, tensors = SimulatedLane(fail_after(0)), [torch.zeros(3)]
    copying = Copying(ring_of(1, 64), lane, tensors, blank(tensors))
    with monkeypatch.context() as patch:
        patch.setattr(threading.Thread, "start", start)
        with pytest.raises(KeyboardInterrupt):
            copying.begin()
    with pytest.raises(RuntimeError, match="stopped"):
        copying.join()  # does not wait for what may never come
    copying.stop()
    late[0].start()
    late[0].join()
    assert not copying._failure  # it did nothing


def test_page_locked_memory_that_cannot_be_had(monkeypatch: pytest.MonkeyPatch) -> None:
    needed = BUFFERS * BUFFER_BYTES
    assert needed == 256 << 20
    made: list[int] = []

    def empty(count: int, *, dtype: torch.dtype, device: str, pin_memory: bool) -> Tensor:
        assert (dtype, device, pin_memory) == (torch.uint8, "cpu", True)
        made.append(count)
        return torch.zeros(1, dtype=dtype)

    def lines(text: str) -> None:
        monkeypatch.setattr(Path, "read_text", lambda *_, **__: text)

    monkeypatch.setattr(staging.torch, "empty", empty)
    lines(f"MemTotal: 99 kB\nMemAvailable:   {needed // 1024 - 1} kB\nBuffers: 1 kB\n")
    with pytest.raises(RuntimeError, match=r"^255 MiB of host memory are available, 256 are needed$"):
        page_locked_ring()
    assert not made
    for text in (f"MemTotal: 99 kB\nMemAvailable:   {needed // 1024} kB\n", "MemTotal: 99 kB\n"):
        lines(text)
        page_locked_ring()
        assert made == [BUFFER_BYTES] * BUFFERS
        made.clear()

    def no_such_file(*_: Any, **__: Any) -> str:
        raise FileNotFoundError

    monkeypatch.setattr(Path, "read_text", no_such_file)
    page_locked_ring()


@pytest.mark.skipif(torch.cuda.is_available(), reason="needs PyTorch without a device")
def test_page_locked_memory_without_a_device() -> None:
    with pytest.raises(RuntimeError):
        page_locked_ring()
