"""Tiny pipelines of the real host classes, random weights, on CPU: for demos, and for testing strategies and hooks.

The sampling loop, the DiT, the solvers and the VAE are the installed `wan` package's own, unmodified. Stood in for are
the text encoder (a fixed 5.7B model upstream) and flash-attention, which upstream allows on CUDA only.
"""

from __future__ import annotations

import hashlib
import importlib
import importlib.util
import sys
import types
from typing import Any
from unittest import mock

import torch
from torch import Tensor
from torch.nn import functional

from halfframe.errors import HalfframeError

__all__ = ["StandInTextEncoder", "import_wan", "sdpa_attention", "tiny_wan_i2v", "tiny_wan_t2v", "use_sdpa"]

TEXT_DIM = 16
TEXT_LEN = 8


def sdpa_attention(
    q: Tensor, k: Tensor, v: Tensor, q_lens: Tensor | None = None, k_lens: Tensor | None = None, **kwargs: Any
) -> Tensor:
    """`wan.modules.attention.flash_attention` by PyTorch's scaled dot-product attention; honours `k_lens`.

    Shapes: q ``(B, Lq, N, D)``, k and v ``(B, Lk, N, D)``, k_lens ``(B,)`` -> ``(B, Lq, N, D)``. Not implemented:
    `q_lens`, windows, dropout, causal masks; the experts of A14B use none of them.
    """
    query, key, value = (tensor.transpose(1, 2) for tensor in (q, k.to(q.dtype), v.to(q.dtype)))
    if q.device.type == "cuda" and q.dtype == torch.float32:  # flash-attention casts to bf16 too
        query, key, value = (tensor.to(torch.bfloat16) for tensor in (query, key, value))
    if k_lens is not None:
        lengths = [int(length) for length in k_lens]
        if len(set(lengths)) > 1:
            raise HalfframeError(f"k_lens {lengths} differ within the batch; needed: one length for all.")
        key, value = key[:, :, : lengths[0]], value[:, :, : lengths[0]]
    out = functional.scaled_dot_product_attention(query, key, value, scale=kwargs.get("softmax_scale"))
    return out.transpose(1, 2).to(q.dtype).contiguous()


def use_sdpa() -> None:
    """Have the installed `wan` package call `sdpa_attention` where it would call flash-attention, in this process."""
    for name in ("wan.modules.model", "wan.distributed.ulysses"):
        module = importlib.import_module(name)
        module.flash_attention = sdpa_attention  # type: ignore[attr-defined]


def import_wan(module: str = "text2video") -> Any:
    """Import ``wan.<module>`` without running ``wan/__init__.py``, which imports speech and animation models.

    Works without a GPU and without torchvision, of which `wan.image2video` needs ``to_tensor`` only.

    Raises:
        HalfframeError: the `wan` package is not installed.
    """
    if "wan" not in sys.modules:
        spec = importlib.util.find_spec("wan")
        if spec is None or spec.submodule_search_locations is None:
            raise HalfframeError("the package `wan` is not installed; pip install --no-deps wan22==2.2.3.")
        package = types.ModuleType("wan")
        package.__path__ = list(spec.submodule_search_locations)
        sys.modules["wan"] = package
    if torch.cuda.is_available():
        return _import_wan(module)
    # Default arguments in wan.modules.t5 ask for the current CUDA device while they are being imported.
    with mock.patch("torch.cuda.current_device", return_value=0):
        return _import_wan(module)


def _import_wan(module: str) -> Any:
    if module != "image2video" or importlib.util.find_spec("torchvision"):
        return importlib.import_module(f"wan.{module}")
    importlib.import_module("wan.text2video")  # all that image2video needs beside torchvision
    stand_ins = _torchvision()
    sys.modules.update(stand_ins)
    try:
        return importlib.import_module("wan.image2video")
    finally:
        for name in stand_ins:
            del sys.modules[name]


def _torchvision() -> dict[str, types.ModuleType]:
    names = ("torchvision", "torchvision.transforms", "torchvision.transforms.functional")
    modules = {name: types.ModuleType(name) for name in names}
    leaf = modules[names[2]]
    leaf.to_tensor = _to_tensor  # type: ignore[attr-defined]
    modules[names[0]].transforms = modules[names[1]]  # type: ignore[attr-defined]
    modules[names[1]].functional = leaf  # type: ignore[attr-defined]
    return modules


def _to_tensor(image: Any) -> Tensor:
    """A PIL image or array (H, W, 3) of bytes as a tensor (3, H, W) in 0..1, as torchvision's function of that name."""
    import numpy as np

    return torch.from_numpy(np.array(image)).permute(2, 0, 1).float().div(255)


class StandInTextEncoder:
    """Upstream's text encoder as the loop sees it; a prompt becomes fixed pseudo-random embeddings ``(8, 16)``."""

    def __init__(self) -> None:
        self.model = torch.nn.Identity()

    def __call__(self, texts: list[str], device: torch.device) -> list[Tensor]:
        return [self._embed(text).to(device) for text in texts]

    def _embed(self, text: str) -> Tensor:
        seed = int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big")
        return torch.randn(TEXT_LEN, TEXT_DIM, generator=torch.Generator().manual_seed(seed >> 1))


def tiny_wan_t2v(seed: int = 0, *, dim: int = 48, num_layers: int = 2, vae_dim: int = 4, **attributes: Any) -> Any:
    """A real ``wan.text2video.WanT2V`` with two tiny experts of random weights, on CPU.

    Give ``offload_model=False`` to its ``generate``: upstream's offload synchronises CUDA.

    Args:
        seed: of the weights.
        dim: width of the experts, a multiple of 24.
        num_layers: blocks of the experts.
        vae_dim: width of the VAE.
        **attributes: set on the pipeline, beside or instead of the usual ones (``boundary=0.9``).
    """
    module = import_wan("text2video")
    return _pipeline(module.WanT2V, seed, dim, num_layers, vae_dim, "t2v", 0.875, attributes)


def tiny_wan_i2v(seed: int = 0, *, dim: int = 48, num_layers: int = 2, vae_dim: int = 4, **attributes: Any) -> Any:
    """A real ``wan.image2video.WanI2V`` with two tiny experts of random weights, on CPU.

    Arguments as `tiny_wan_t2v`.
    """
    module = import_wan("image2video")
    return _pipeline(module.WanI2V, seed, dim, num_layers, vae_dim, "i2v", 0.9, attributes)


def _pipeline(
    cls: Any, seed: int, dim: int, num_layers: int, vae_dim: int, kind: str, boundary: float, attributes: dict[str, Any]
) -> Any:
    use_sdpa()
    pipe = object.__new__(cls)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        pipe.high_noise_model = _expert(kind, dim, num_layers)
        pipe.low_noise_model = _expert(kind, dim, num_layers)
        pipe.vae = _vae(vae_dim)
    defaults = {
        "device": torch.device("cpu"),
        "rank": 0,
        "t5_cpu": True,
        "init_on_cpu": False,
        "num_train_timesteps": 1000,
        "boundary": boundary,
        "param_dtype": torch.float32,
        "text_encoder": StandInTextEncoder(),
        "vae_stride": (4, 8, 8),
        "patch_size": (1, 2, 2),
        "sp_size": 1,
        "sample_neg_prompt": "blurry",
        "lightning": False,  # a fork's switch, wan22 2.2.11
    }
    for name, value in {**defaults, **attributes}.items():
        setattr(pipe, name, value)
    return pipe


def _expert(kind: str, dim: int, num_layers: int) -> Any:
    model = importlib.import_module("wan.modules.model").WanModel(
        model_type=kind,
        text_len=TEXT_LEN,
        in_dim=16 if kind == "t2v" else 36,
        dim=dim,
        ffn_dim=2 * dim,
        freq_dim=32,
        text_dim=TEXT_DIM,
        out_dim=16,
        num_heads=dim // 24,
        num_layers=num_layers,
    )
    torch.nn.init.normal_(model.head.head.weight, std=0.2)  # upstream starts from zero, which would hide everything
    return model.eval().requires_grad_(False)


def _vae(dim: int) -> Any:
    module = importlib.import_module("wan.modules.vae2_1")
    vae = object.__new__(module.Wan2_1_VAE)
    vae.dtype, vae.device = torch.float32, torch.device("cpu")
    vae.mean, vae.std = torch.zeros(16), torch.ones(16)
    vae.scale = [vae.mean, 1.0 / vae.std]
    model = module.WanVAE_(
        dim=dim, z_dim=16, dim_mult=[1, 1, 1, 1], num_res_blocks=1, temperal_downsample=[False, True, True]
    )
    vae.model = model.eval().requires_grad_(False)
    return vae
