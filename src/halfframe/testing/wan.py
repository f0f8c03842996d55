"""Official pipelines with random weights: the installed `wan` package's own classes, unmodified.

Stood in for are the text encoder (a fixed 5.7B model upstream) and flash-attention, which upstream allows on CUDA only.
"""

from __future__ import annotations

import importlib
from typing import Any
from unittest import mock

import torch
from torch import Tensor

from halfframe.testing.importing import import_wan, use_sdpa
from halfframe.testing.sizes import TINY, WanSizes, default_dtype, seed_of

__all__ = ["StandInTextEncoder", "tiny_wan_i2v", "tiny_wan_t2v"]


class StandInTextEncoder:
    """Upstream's text encoder as the loop sees it: a prompt becomes fixed pseudo-random embeddings.

    Args:
        text_len: tokens per prompt.
        text_dim: width of an embedding.
    """

    def __init__(self, text_len: int = TINY.text_len, text_dim: int = TINY.text_dim) -> None:
        self.model = torch.nn.Identity()
        self._shape = (text_len, text_dim)

    def __call__(self, texts: list[str], device: torch.device) -> list[Tensor]:
        return [self._embed(text).to(device) for text in texts]

    def _embed(self, text: str) -> Tensor:
        return torch.randn(self._shape, generator=torch.Generator().manual_seed(seed_of(text)))


def tiny_wan_t2v(seed: int = 0, sizes: WanSizes = TINY, **attributes: Any) -> Any:
    """A real ``wan.text2video.WanT2V`` with two experts of random weights, on CPU unless told otherwise.

    On a machine without CUDA give ``offload_model=False`` to its ``generate``: upstream's offload synchronises CUDA.

    Args:
        seed: of the weights.
        sizes: of experts and VAE.
        **attributes: set on the pipeline, beside or instead of the usual ones (``boundary=0.9``); ``device`` and
            ``param_dtype`` are where and in what dtype the experts are built.
    """
    return _pipeline(import_wan("text2video").WanT2V, "t2v", seed, sizes, {"boundary": 0.875, **attributes})


def tiny_wan_i2v(seed: int = 0, sizes: WanSizes = TINY, **attributes: Any) -> Any:
    """A real ``wan.image2video.WanI2V`` with two experts of random weights; arguments as `tiny_wan_t2v`."""
    return _pipeline(import_wan("image2video").WanI2V, "i2v", seed, sizes, {"boundary": 0.9, **attributes})


def _pipeline(cls: Any, kind: str, seed: int, sizes: WanSizes, attributes: dict[str, Any]) -> Any:
    use_sdpa()
    pipe = object.__new__(cls)
    defaults = {
        "device": torch.device("cpu"),
        "rank": 0,
        "t5_cpu": True,
        "init_on_cpu": False,
        "num_train_timesteps": 1000,
        "param_dtype": torch.float32,
        "text_encoder": StandInTextEncoder(sizes.text_len, sizes.text_dim),
        "vae_stride": (4, 8, 8),
        "patch_size": (1, 2, 2),
        "sp_size": 1,
        "sample_neg_prompt": "blurry",
        "lightning": False,  # a fork's switch, wan22 2.2.11
    }
    for name, value in {**defaults, **attributes}.items():
        setattr(pipe, name, value)
    cuda = [pipe.device] if pipe.device.type == "cuda" else []
    with torch.random.fork_rng(devices=cuda), pipe.device:
        torch.manual_seed(seed)
        pipe.high_noise_model = _expert(kind, sizes, pipe.param_dtype)
        pipe.low_noise_model = _expert(kind, sizes, pipe.param_dtype)
        pipe.vae = _vae(sizes, pipe.device)
    return pipe


def _expert(kind: str, sizes: WanSizes, dtype: torch.dtype) -> Any:
    with default_dtype(dtype):
        model = importlib.import_module("wan.modules.model").WanModel(
            model_type=kind,
            text_len=sizes.text_len,
            in_dim=16 if kind == "t2v" else 36,
            dim=sizes.dim,
            ffn_dim=sizes.ffn_dim,
            freq_dim=sizes.freq_dim,
            text_dim=sizes.text_dim,
            out_dim=16,
            num_heads=sizes.num_heads,
            num_layers=sizes.num_layers,
        )
    torch.nn.init.normal_(model.head.head.weight, std=0.2)  # upstream starts from zero, which would hide everything
    return model.eval().requires_grad_(False)


def _vae(sizes: WanSizes, device: torch.device) -> Any:
    module = importlib.import_module("wan.modules.vae2_1")
    model = module.WanVAE_(
        dim=sizes.vae_dim,
        z_dim=16,
        dim_mult=list(sizes.vae_dim_mult),
        num_res_blocks=sizes.vae_res_blocks,
        temperal_downsample=[False, True, True],
    )
    with mock.patch.object(module, "_video_vae", return_value=model):  # it would load a checkpoint
        return module.Wan2_1_VAE(device=device)
