"""The installed `wan` package on a machine without a GPU, torchvision or flash-attention."""

from __future__ import annotations

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

__all__ = ["import_wan", "sdpa_attention", "use_sdpa"]


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
        package.__path__, package.__spec__ = list(spec.submodule_search_locations), spec
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
