"""Pipelines of random weights that are built in another dtype than float32."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import WanTransformer3DModel

import halfframe
from halfframe.testing import TINY, tiny_diffusers_t2v


@pytest.fixture(scope="module")
def pipe() -> Any:
    return tiny_diffusers_t2v(dtype=torch.bfloat16)


def test_weights_are_in_the_dtypes_that_diffusers_loads_them_in(pipe: Any, tmp_path: Path) -> None:
    tiny_diffusers_t2v().transformer.save_pretrained(tmp_path)
    loaded = WanTransformer3DModel.from_pretrained(tmp_path, torch_dtype=torch.bfloat16)
    for expert in (pipe.transformer, pipe.transformer_2):
        dtypes = {name: parameter.dtype for name, parameter in expert.named_parameters()}
        assert dtypes == {name: parameter.dtype for name, parameter in loaded.named_parameters()}
        assert {*dtypes.values()} == {torch.bfloat16, torch.float32}
    assert pipe.vae.dtype == torch.float32
    assert torch.get_default_dtype() == torch.float32


def test_positions_are_as_exact_as_ever(pipe: Any) -> None:
    usual = tiny_diffusers_t2v().transformer.rope
    torch.testing.assert_close(pipe.transformer.rope.freqs_cos, usual.freqs_cos, rtol=0, atol=0)


def test_it_runs(pipe: Any) -> None:
    with halfframe.enabled(pipe, "interleave") as run:
        video = pipe(
            "a ball",
            width=32,
            height=32,
            num_frames=9,
            num_inference_steps=4,
            output_type="pt",
            max_sequence_length=TINY.text_len,
        ).frames
    assert video.isfinite().all()
    assert run.report is not None
    assert run.report.saved
