"""`CudaAccelerator` and preload on a real GPU; skipped without one."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor

import halfframe
from halfframe.accelerator import CudaAccelerator
from halfframe.pinning import OWN_PAGES, pieces
from halfframe.residency import Residency
from halfframe.testing import WanSizes, tiny_wan_t2v

if not torch.cuda.is_available():
    pytest.skip("needs a CUDA GPU", allow_module_level=True)

# Feed-forward matrices with pages of their own, the rest without: both ways of copying.
SIZES = WanSizes(dim=2048, ffn_dim=8192, num_heads=16, num_layers=6)
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


@pytest.mark.parametrize("strategy", [None, "self-duplicate"])
def test_same_videos_overlapped_and_nothing_copied_back(pipe: Any, strategy: str | None) -> None:
    def videos(**options: Any) -> tuple[list[Tensor], list[halfframe.Report]]:
        with halfframe.enabled(pipe, strategy, cfg_truncate_steps=1, **options) as run:  # None alone would warn
            return [generate(pipe, seed) for seed in (0, 1, 0)], run.reports

    expected, _ = videos()
    before = storages(pipe)
    seen, reports = videos(preload=True)
    for video, wanted in zip(seen, expected, strict=True):
        assert torch.equal(video, wanted)
    assert [report.preload for report in reports] == ["overlapped"] * 3
    assert storages(pipe) == before
    assert {kind for kind, _ in before} == {"cpu"}


def test_without_room_at_the_switch_and_no_more_memory_than_upstream(
    pipe: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    generate(pipe)
    torch.cuda.reset_peak_memory_stats()
    expected = generate(pipe)
    peak = torch.cuda.max_memory_allocated()
    monkeypatch.setattr("halfframe.preload.GPU_RESERVE", 1 << 60)
    torch.cuda.reset_peak_memory_stats()
    with halfframe.enabled(pipe, None, preload=True) as run:
        assert torch.equal(generate(pipe), expected)
    assert torch.cuda.max_memory_allocated() <= peak + (1 << 20)
    assert run.report is not None
    assert str(run.report.preload).startswith("at the switch: ")


def test_copies_aside_while_kernels_run() -> None:
    model = torch.nn.Sequential(*(torch.nn.Linear(4096, 4096) for _ in range(8))).requires_grad_(False)
    x = torch.randn(64, 4096)
    accelerator = CudaAccelerator(torch.device("cuda"))
    weights = Residency(model, accelerator)
    busy = torch.randn(8192, 8192, device=accelerator.device)
    assert weights.enter()
    expected = model(x.to(accelerator.device))
    assert weights.leave()
    assert weights.pin(1 << 40) == ""
    for _ in range(5):
        for _ in range(20):
            busy = (busy @ busy).clamp(-1, 1)
        assert weights.stage() == ""
        assert weights.enter()
        assert torch.equal(model(x.to(accelerator.device)), expected)
        assert weights.leave()
    weights.unpin()


def test_memory_that_is_locked_already_is_told_of_and_forgotten() -> None:
    accelerator = CudaAccelerator(torch.device("cuda"))
    held = torch.zeros(OWN_PAGES // 4)
    [(address, nbytes)] = pieces([held])
    assert accelerator.pin(address, nbytes) == ""
    assert accelerator.pin(address, nbytes) != ""
    assert float(torch.ones(3, device=accelerator.device).sum()) == 3  # the error is not told to another kernel
    assert accelerator.unpin(address) == ""
    assert accelerator.unpin(address) != ""
    assert float(torch.ones(3, device=accelerator.device).sum()) == 3
