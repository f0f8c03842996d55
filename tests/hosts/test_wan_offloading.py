"""diffusers' group offloading on the official experts, beside halfframe."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import halfframe
from halfframe.testing import tiny_wan_t2v

from .test_wan_t2v import ARGS, PROMPT

EXPERTS = ("high_noise_model", "low_noise_model")


def latents(pipe: Any, strategy: Any = None, **options: Any) -> Tensor:
    """The final latents of a run, in a block of halfframe's if there is a strategy."""
    seen: list[Tensor] = []
    decode = pipe.vae.decode
    pipe.vae.decode = lambda clips: seen.extend(clips) or decode(clips)
    try:
        if strategy is None:
            pipe.generate(PROMPT, offload_model=False, **ARGS)
        else:
            with halfframe.enabled(pipe, strategy, **options) as run:
                pipe.generate(PROMPT, offload_model=False, **ARGS)
            assert run.report is not None
            assert run.report.saved
    finally:
        del pipe.vae.decode
    return seen[0]


@pytest.mark.parametrize("offload_type", ["leaf_level", "block_level"])
@pytest.mark.parametrize("strategy", ["merge", "interleave:until=1", "self-duplicate"])
def test_group_offloading(offload_type: str, strategy: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Between disk and CPU, so that weights are gone until a hook brings them; diffusers insists on an accelerator."""
    if torch.accelerator.current_accelerator() is None:
        monkeypatch.setattr("torch.accelerator.current_accelerator", lambda: torch.device("cpu"))
    hooks = pytest.importorskip("diffusers.hooks")
    pipe = tiny_wan_t2v()
    plain, halved = latents(pipe), latents(pipe, strategy)
    for name in EXPERTS:
        hooks.apply_group_offloading(
            getattr(pipe, name),
            onload_device=torch.device("cpu"),
            offload_type=offload_type,
            num_blocks_per_group=1 if offload_type == "block_level" else None,
            offload_to_disk_path=str(tmp_path / name),
        )
    assert torch.equal(latents(pipe), plain)
    assert torch.equal(latents(pipe, strategy), halved)
    assert torch.equal(latents(pipe), plain)
    assert not torch.equal(plain, halved)
