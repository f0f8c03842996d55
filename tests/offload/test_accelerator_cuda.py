"""`CudaAccelerator` and prefetch on a real GPU; skipped without one."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Sequence
from copy import deepcopy
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import halfframe
from halfframe.offload import accelerator as accelerators
from halfframe.offload.accelerator import CudaAccelerator
from halfframe.offload.residency import Residency
from halfframe.offload.staging import BUFFER_BYTES, BUFFERS, page_locked_ring
from halfframe.testing import WanSizes, tiny_wan_t2v

from ..simulated import copying_threads
from .test_residency import Model, state
from .test_staging import bits, random

if not torch.cuda.is_available():
    pytest.skip("needs a CUDA GPU", allow_module_level=True)

SIZES = WanSizes(dim=2048, ffn_dim=8192, num_heads=16, num_layers=6)  # 0.8 GiB an expert: each buffer is used thrice
EXPERTS = ("high_noise_model", "low_noise_model")


def generate(pipe: Any, seed: int = 0) -> Tensor:
    video: Tensor = pipe.generate(
        "a red ball rolls over stripes", size=(320, 192), frame_num=33, sampling_steps=10, shift=12.0, seed=seed
    )
    return video


def storages(pipe: Any) -> list[tuple[str, int]]:
    return [
        (parameter.device.type, parameter.data.untyped_storage()._cdata)
        for name in EXPERTS
        for parameter in getattr(pipe, name).parameters()
    ]


@pytest.fixture
def pipe() -> Iterator[Any]:
    pipe = tiny_wan_t2v(sizes=SIZES, device=torch.device("cuda", 0), param_dtype=torch.bfloat16, init_on_cpu=True)
    for name in EXPERTS:
        getattr(pipe, name).cpu()
    yield pipe
    torch.cuda.empty_cache()


@pytest.fixture
def accelerator() -> Iterator[CudaAccelerator]:
    torch.cuda.empty_cache()
    accelerator = CudaAccelerator(torch.device("cuda"))
    yield accelerator
    accelerator.close()
    assert not copying_threads()
    torch.cuda.empty_cache()


@pytest.mark.parametrize("strategy", [None, "self-duplicate"])
def test_same_videos_overlapped_and_nothing_copied_back(pipe: Any, strategy: str | None) -> None:
    def videos(**options: Any) -> tuple[list[Tensor], list[halfframe.Report]]:
        with halfframe.enabled(
            pipe, strategy, guidance=halfframe.Guidance(skip_last=1), **options
        ) as run:  # None alone would warn
            return [generate(pipe, seed) for seed in (0, 1, 0)], run.reports

    expected, _ = videos()
    before = storages(pipe)
    seen, reports = videos(prefetch=True)
    for video, wanted in zip(seen, expected, strict=True):
        assert torch.equal(video, wanted)
    assert [report.prefetch for report in reports] == ["overlapped"] * 3
    assert storages(pipe) == before
    assert {kind for kind, _ in before} == {"cpu"}


def test_without_room_at_the_switch_and_no_more_memory_than_upstream(
    pipe: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    def peak() -> int:
        """Bytes that were asked for at once: what is allocated depends on the gaps that the cache happens to have."""
        return int(torch.cuda.memory_stats()["requested_bytes.all.peak"])

    generate(pipe)
    torch.cuda.reset_peak_memory_stats()
    expected = generate(pipe).cpu()  # 23 MiB, which would count as the next clip's
    upstream = peak()
    monkeypatch.setattr("halfframe.offload.prefetch.GPU_RESERVE", 1 << 60)
    torch.cuda.reset_peak_memory_stats()
    with halfframe.enabled(pipe, None, prefetch=True) as run:
        assert torch.equal(generate(pipe).cpu(), expected)
    assert peak() <= upstream + (1 << 20)
    assert run.report is not None
    assert str(run.report.prefetch).startswith("at the switch: ")


def fail_in_the_thread(monkeypatch: pytest.MonkeyPatch, left: int) -> None:
    """Sending fails beside the computation, after so many pieces."""
    send, rest = accelerators._CudaLane.send, iter(range(left))

    def failing(self: Any, source: Tensor, target: Tensor) -> None:
        if threading.current_thread().name == "halfframe-copying" and next(rest, None) is None:
            raise RuntimeError("injected")
        send(self, source, target)

    monkeypatch.setattr(accelerators._CudaLane, "send", failing)


@pytest.mark.parametrize("trouble", ["buffers", "copying"])
def test_copies_aside_that_fail_cost_nothing_but_the_overlap(
    pipe: Any, monkeypatch: pytest.MonkeyPatch, trouble: str
) -> None:
    def no_ring() -> Any:
        raise RuntimeError("injected")

    expected, before = generate(pipe), None
    if trouble == "buffers":
        monkeypatch.setattr(accelerators, "page_locked_ring", no_ring)
    else:
        fail_in_the_thread(monkeypatch, 20)
    before = storages(pipe)
    with (
        halfframe.enabled(pipe, None, prefetch=True) as run,
        pytest.warns(halfframe.HalfframeWarning, match="prefetch at the switch: injected"),
    ):
        assert torch.equal(generate(pipe), expected)
    assert run.report is not None
    assert run.report.prefetch == "at the switch: injected"
    assert storages(pipe) == before
    assert not copying_threads()


def linears() -> nn.Sequential:
    """2 GiB, in matrices of one buffer each and biases between them."""
    return nn.Sequential(*(nn.Linear(4096, 4096) for _ in range(32))).requires_grad_(False)


def test_copies_aside_while_kernels_run(accelerator: CudaAccelerator) -> None:
    model, x = linears(), torch.randn(64, 4096, device=accelerator.device)
    weights, busy = Residency(model, accelerator), torch.randn(8192, 8192, device=accelerator.device)
    assert weights.enter()
    expected = model(x)
    assert weights.leave()
    for n in range(5):
        for _ in range(200):
            busy = (busy @ busy).clamp(-1, 1)
        weights.stage()
        assert weights.trouble == ""
        if n == 0:
            assert weights._staged is not None
            weights._staged[1]._over.wait()  # type: ignore[attr-defined]
            accelerator._aside.synchronize()
            assert not torch.cuda.current_stream().query()  # all copied, and the kernels still run
        assert weights.enter()
        assert weights.aside
        copies = [parameter.data for parameter in model.parameters()]
        seen = model(x)
        assert weights.leave()
        accelerator.give_back()
        for parameter, copy in zip(model.parameters(), copies, strict=True):
            assert torch.equal(copy.cpu(), parameter.data)
        assert torch.equal(seen, expected)


def test_copies_in_the_middle_of_other_work(accelerator: CudaAccelerator) -> None:
    """Let go as soon as kernels that read them were launched, over and over: memory is not used again too early."""
    model, x = linears()[:8], torch.randn(4096, 4096, device=accelerator.device)
    weights = Residency(model, accelerator)
    assert weights.enter()
    expected = model(x)
    assert weights.leave()
    results = []
    for n in range(20):
        if n % 2:
            weights.stage()
        assert weights.enter()
        assert weights.aside == bool(n % 2)
        results.append(model(x))
        assert weights.leave()
    assert all(torch.equal(result, expected) for result in results)


def all_kinds(folder: Path) -> list[Tensor]:
    """Host tensors of every kind that is copied in a way of its own."""
    mapped = folder / "weights"
    random((30_001,), torch.uint8).numpy().tofile(mapped)
    file = torch.from_file(str(mapped), shared=False, size=30_001, dtype=torch.uint8)
    matrix = random((300, 500), torch.float32)
    dtypes = [torch.bool, torch.int8, torch.int64, torch.float16, torch.bfloat16, torch.float64, torch.complex64]
    return [
        torch.tensor(1.5),
        torch.empty(0, 3),
        *(random((7, 3), dtype) for dtype in dtypes),
        random((5 * BUFFER_BYTES + 7,), torch.uint8),
        random((BUFFER_BYTES,), torch.uint8),
        random((3, 5), torch.bfloat16).t(),
        random((4, 5, 6, 7), torch.float16).to(memory_format=torch.channels_last),
        matrix,
        matrix.t(),
        matrix[3:9],
        matrix[:, 2:9],
        matrix[:, ::2].t(),
        matrix[:1].expand(4, 500),
        random((9,), torch.complex64).conj(),
        file,
        file[4:30_000].view(torch.int32),
        random((2_000_003,), torch.float32).pin_memory(),
        random((70, 50), torch.float32).pin_memory()[:, :20],
    ]


@pytest.mark.parametrize("ahead", [False, True])
@pytest.mark.parametrize("inference", [False, True])
def test_what_is_copied_is_what_to_gives(
    accelerator: CudaAccelerator, tmp_path: Path, ahead: bool, inference: bool
) -> None:
    hosts = all_kinds(tmp_path)

    def copied() -> Sequence[Tensor]:
        if not ahead:
            return accelerator.copy(hosts)
        staged = accelerator.copy_aside(hosts)
        staged.begin()
        return staged.join()

    for _ in range(3):
        with torch.inference_mode(inference):
            copies = copied()
        for host, copy in zip(hosts, copies, strict=True):
            wanted = host.to(accelerator.device)
            assert (copy.dtype, copy.shape, copy.stride()) == (wanted.dtype, wanted.shape, wanted.stride())
            assert (copy.device, copy.is_inference()) == (accelerator.device, inference)
            assert torch.equal(bits(copy.cpu().resolve_conj()), bits(host.resolve_conj()))


@pytest.mark.parametrize("ahead", [False, True])
def test_weights_in_every_relation_to_each_others_memory(accelerator: CudaAccelerator, ahead: bool) -> None:
    model, x = Model(), torch.randn(2, 40)
    before, x = state(model), x.to(accelerator.device)
    expected = deepcopy(model).to(accelerator.device)(x)
    weights = Residency(model, accelerator)
    for _ in range(3):
        if ahead:
            weights.stage()
        assert weights.enter()
        assert weights.aside == ahead
        assert model.first.weight.data.data_ptr() == model.same_memory.data.data_ptr()
        torch.testing.assert_close(model(x), expected)
        assert weights.leave()
        assert state(model) == before


def test_without_page_locked_memory_copies_are_plain(
    accelerator: CudaAccelerator, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("halfframe.offload.staging._available_host_memory", lambda: BUFFERS * BUFFER_BYTES - 1)
    hosts = all_kinds(tmp_path)
    for host, copy in zip(hosts, accelerator.copy(hosts), strict=True):
        assert torch.equal(bits(copy.cpu().resolve_conj()), bits(host.resolve_conj()))
    with pytest.raises(RuntimeError, match="255 MiB of host memory are available, 256 are needed"):
        accelerator.copy_aside(hosts)


def test_buffers_are_page_locked() -> None:
    assert all(buffer.is_pinned() for buffer in page_locked_ring()._buffers)


def test_copies_aside_that_find_no_room_leave_nothing(accelerator: CudaAccelerator) -> None:
    model = linears()
    weights = Residency(model, accelerator)
    used, total = torch.cuda.memory_allocated(), torch.cuda.get_device_properties(0).total_memory
    torch.cuda.set_per_process_memory_fraction((torch.cuda.memory_reserved() + weights.nbytes // 2) / total)
    try:
        weights.stage()
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0)
    assert weights.trouble.startswith("OutOfMemoryError: CUDA out of memory")
    assert torch.cuda.memory_allocated() == used
    weights.stage()
    assert weights.enter()
    assert weights.aside


@pytest.mark.parametrize("after", [0, 1, 30])
def test_copies_aside_that_fail_are_made_again(
    accelerator: CudaAccelerator, monkeypatch: pytest.MonkeyPatch, after: int
) -> None:
    """Without ever taking the memory of two experts."""
    model, x = linears(), torch.randn(64, 4096, device=accelerator.device)
    weights = Residency(model, accelerator)
    assert weights.enter()
    expected = model(x)
    assert weights.leave()
    torch.cuda.reset_peak_memory_stats()
    used = torch.cuda.memory_allocated()
    with monkeypatch.context() as patch:
        fail_in_the_thread(patch, after)
        weights.stage()
        assert weights.enter()
    assert (weights.aside, weights.trouble) == (False, "injected")
    assert torch.cuda.max_memory_allocated() - used < 1.1 * weights.nbytes
    assert torch.equal(model(x), expected)
    assert weights.leave()
    weights.trouble = ""
    weights.stage()
    assert weights.enter()
    assert (weights.aside, weights.trouble) == (True, "")
    assert torch.equal(model(x), expected)


def test_copies_that_are_not_needed_stop(accelerator: CudaAccelerator) -> None:
    model, x = linears(), torch.randn(64, 4096, device=accelerator.device)
    weights, busy = Residency(model, accelerator), torch.randn(8192, 8192, device=accelerator.device)
    assert weights.enter()
    expected = model(x)
    assert weights.leave()
    for _ in range(3):
        used = torch.cuda.memory_allocated()
        for _ in range(20):
            busy.copy_((busy @ busy).clamp(-1, 1))
        weights.stage()
        weights.drop_staged()
        assert not copying_threads()
        assert torch.cuda.memory_allocated() <= used
        assert weights.enter()
        assert not weights.aside
        assert torch.equal(model(x), expected)
        assert weights.leave()


def test_two_accelerators_in_two_threads() -> None:
    wrong: list[int] = []
    models = [linears()[:8] for _ in range(2)]

    def work(model: nn.Module) -> None:
        with torch.cuda.stream(torch.cuda.Stream()):
            mine = CudaAccelerator(torch.device("cuda", 0))
            weights, expected = Residency(model, mine), [parameter.data for parameter in model.parameters()]
            for n in range(10):
                if n % 3:
                    weights.stage()
                weights.enter()
                seen = [parameter.data.cpu() for parameter in model.parameters()]
                weights.leave()
                if weights.trouble or not all(map(torch.equal, seen, expected)):
                    wrong.append(n)

    threads = [threading.Thread(target=work, args=(model,)) for model in models]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong
