"""Pipelines of the real host classes with random weights: for testing strategies and hooks, demos and benchmarks.

The sampling loop, the DiT, the solvers and the VAE are the installed `wan` package's own, unmodified. Stood in for are
the text encoder (a fixed 5.7B model upstream) and flash-attention, which upstream allows on CUDA only.
"""

from __future__ import annotations

import contextlib
import hashlib
import importlib
import importlib.util
import re
import sys
import types
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, TypeVar
from unittest import mock

import torch
from torch import Tensor
from torch.nn import functional

from halfframe.errors import HalfframeError

__all__ = [
    "A14B",
    "TINY",
    "StandInTextEncoder",
    "StandInTokenEncoder",
    "StandInTokenizer",
    "WanSizes",
    "diffusers_from_wan_state",
    "diffusers_transformer",
    "diffusers_vae",
    "import_wan",
    "sdpa_attention",
    "tiny_diffusers_i2v",
    "tiny_diffusers_t2v",
    "tiny_wan_i2v",
    "tiny_wan_t2v",
    "use_sdpa",
]


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


@dataclass(frozen=True, slots=True)
class WanSizes:
    """Sizes of an official pipeline: its two experts and its VAE.

    Attributes:
        dim: width of the experts; ``dim // num_heads`` must be even.
        ffn_dim: their feed-forward width.
        num_heads: their attention heads.
        num_layers: their blocks.
        text_dim: width of the text embeddings.
        text_len: text tokens.
        freq_dim: width of the timestep's sinusoids.
        vae_dim: base width of the VAE.
        vae_dim_mult: its width per level, in units of the base.
        vae_res_blocks: its residual blocks per level.
    """

    dim: int = 48
    ffn_dim: int = 96
    num_heads: int = 2
    num_layers: int = 2
    text_dim: int = 16
    text_len: int = 8
    freq_dim: int = 32
    vae_dim: int = 4
    vae_dim_mult: tuple[int, ...] = (1, 1, 1, 1)
    vae_res_blocks: int = 1


TINY = WanSizes()
"""Runs on a CPU in well under a second per clip."""

A14B = WanSizes(5120, 13824, 40, 40, 4096, 512, 256, 96, (1, 2, 4, 4), 2)
"""The true sizes of Wan2.2 A14B: 57 GB of weights in bfloat16."""


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
        return torch.randn(self._shape, generator=torch.Generator().manual_seed(_seed_of(text)))


def _seed_of(text: str) -> int:
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big") >> 1


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
    with _default_dtype(dtype):
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


@contextlib.contextmanager
def _default_dtype(dtype: torch.dtype) -> Iterator[None]:
    """What is built within is built in `dtype`: A14B in float32 first would take twice the memory."""
    usual = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        yield
    finally:
        torch.set_default_dtype(usual)


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


class StandInTokenizer:
    """A tokenizer as diffusers' pipelines see it: every token of a prompt is one number, made from the whole prompt.

    Args:
        text_len: tokens of a prompt; the rest up to ``max_length`` is padding.
    """

    def __init__(self, text_len: int = TINY.text_len) -> None:
        self._text_len = text_len

    def __call__(self, texts: list[str], *, max_length: int, **_: Any) -> types.SimpleNamespace:
        """``input_ids`` and ``attention_mask``, both ``(len(texts), max_length)``."""
        seeds = torch.tensor([_seed_of(text) for text in texts])
        mask = (torch.arange(max_length) < self._text_len).long().expand(len(texts), -1)
        return types.SimpleNamespace(input_ids=seeds[:, None] * mask, attention_mask=mask)


class StandInTokenEncoder(torch.nn.Module):
    """A text encoder as diffusers' pipelines see it; embeds a prompt as `StandInTextEncoder` does.

    Args:
        text_len: tokens of a prompt.
        text_dim: width of an embedding.
    """

    def __init__(self, text_len: int = TINY.text_len, text_dim: int = TINY.text_dim) -> None:
        super().__init__()
        self._shape = (text_len, text_dim)
        self.weight = torch.nn.Parameter(torch.zeros(1), requires_grad=False)  # shows device and dtype, as a model's

    @property
    def device(self) -> torch.device:
        """Where it is."""
        return self.weight.device

    @property
    def dtype(self) -> torch.dtype:
        """What it returns."""
        return self.weight.dtype

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> types.SimpleNamespace:
        """``last_hidden_state`` ``(B, L, text_dim)`` of tokens ``(B, L)`` that come from a `StandInTokenizer`."""
        embeddings = torch.zeros(*input_ids.shape, self._shape[1])
        length = min(self._shape[0], input_ids.shape[1])
        for row, seed in zip(embeddings, input_ids[:, 0].tolist(), strict=True):
            row[:length] = torch.randn(self._shape, generator=torch.Generator().manual_seed(seed))[:length]
        return types.SimpleNamespace(last_hidden_state=embeddings.to(self.device, self.dtype))


_CPU = torch.device("cpu")


def tiny_diffusers_t2v(
    seed: int = 0,
    sizes: WanSizes = TINY,
    device: torch.device = _CPU,
    dtype: torch.dtype = torch.float32,
    **parts: Any,
) -> Any:
    """A real diffusers ``WanPipeline`` with two experts of random weights, on CPU unless told otherwise.

    Transformers, VAE and scheduler (UniPC, shift 12) are diffusers' own; tokenizer and text encoder are stand-ins
    that need no download. Give ``max_sequence_length=sizes.text_len`` to its call for prompts without padding.

    Args:
        seed: of the weights.
        sizes: of experts and VAE.
        device: where it is built.
        dtype: of the experts' weights, but for those that diffusers loads in float32 always; the VAE is float32.
        **parts: arguments of the pipeline's class, beside or instead of the usual ones (``boundary_ratio=0.9``).
    """
    pipeline = importlib.import_module("diffusers").WanPipeline
    return _diffusers_pipeline(pipeline, 16, seed, sizes, device, dtype, {"boundary_ratio": 0.875, **parts})


def tiny_diffusers_i2v(
    seed: int = 0,
    sizes: WanSizes = TINY,
    device: torch.device = _CPU,
    dtype: torch.dtype = torch.float32,
    **parts: Any,
) -> Any:
    """A real diffusers ``WanImageToVideoPipeline`` with two experts of random weights; as `tiny_diffusers_t2v`."""
    pipeline = importlib.import_module("diffusers").WanImageToVideoPipeline
    return _diffusers_pipeline(pipeline, 36, seed, sizes, device, dtype, {"boundary_ratio": 0.9, **parts})


def _diffusers_pipeline(
    cls: Any,
    in_channels: int,
    seed: int,
    sizes: WanSizes,
    device: torch.device,
    dtype: torch.dtype,
    parts: dict[str, Any],
) -> Any:
    diffusers = importlib.import_module("diffusers")
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []), device:
        torch.manual_seed(seed)
        defaults = {
            "transformer": _diffusers_expert(in_channels, sizes, dtype),
            "transformer_2": _diffusers_expert(in_channels, sizes, dtype),
            "vae": diffusers_vae(sizes).eval(),
        }
    defaults |= {
        "tokenizer": StandInTokenizer(sizes.text_len),
        "text_encoder": StandInTokenEncoder(sizes.text_len, sizes.text_dim).to(device),
        "scheduler": diffusers.UniPCMultistepScheduler(
            prediction_type="flow_prediction", use_flow_sigmas=True, flow_shift=12.0
        ),
    }
    pipe = cls(**{**defaults, **parts})
    pipe.set_progress_bar_config(disable=True)
    return pipe


def diffusers_transformer(sizes: WanSizes, in_channels: int = 16) -> Any:
    """A diffusers ``WanTransformer3DModel`` of `sizes`, as diffusers initialises it."""
    return importlib.import_module("diffusers").WanTransformer3DModel(
        num_attention_heads=sizes.num_heads,
        attention_head_dim=sizes.dim // sizes.num_heads,
        in_channels=in_channels,
        out_channels=16,
        text_dim=sizes.text_dim,
        freq_dim=sizes.freq_dim,
        ffn_dim=sizes.ffn_dim,
        num_layers=sizes.num_layers,
    )


def diffusers_vae(sizes: WanSizes) -> Any:
    """A diffusers ``AutoencoderKLWan`` of `sizes`, as diffusers initialises it; temporal 4x, spatial 8x, causal."""
    return importlib.import_module("diffusers").AutoencoderKLWan(
        base_dim=sizes.vae_dim,
        z_dim=16,
        dim_mult=list(sizes.vae_dim_mult),
        num_res_blocks=sizes.vae_res_blocks,
        temperal_downsample=[False, True, True],
    )


def _diffusers_expert(in_channels: int, sizes: WanSizes, dtype: torch.dtype) -> Any:
    with _default_dtype(dtype):
        model = diffusers_transformer(sizes, in_channels)
    for name, parameter in model.named_parameters():
        if not {*name.split(".")}.isdisjoint(model._keep_in_fp32_modules or ()):
            parameter.data = parameter.data.float()
    torch.nn.init.normal_(model.proj_out.weight, std=0.2)  # as in the official experts above
    return model.eval().requires_grad_(False)


_Weight = TypeVar("_Weight")
_DIFFUSERS_NAMES = {
    "text_embedding.0": "condition_embedder.text_embedder.linear_1",
    "text_embedding.2": "condition_embedder.text_embedder.linear_2",
    "time_embedding.0": "condition_embedder.time_embedder.linear_1",
    "time_embedding.2": "condition_embedder.time_embedder.linear_2",
    "time_projection.1": "condition_embedder.time_proj",
    "head.head": "proj_out",
    "head.modulation": "scale_shift_table",
    "modulation": "scale_shift_table",
    "self_attn": "attn1",
    "cross_attn": "attn2",
    "q": "to_q",
    "k": "to_k",
    "v": "to_v",
    "o": "to_out.0",
    "norm3": "norm2",
    "ffn.0": "ffn.net.0.proj",
    "ffn.2": "ffn.net.2",
}


def diffusers_from_wan_state(state: dict[str, _Weight]) -> dict[str, _Weight]:
    """The weights of an official ``WanModel`` under the names of diffusers' ``WanTransformer3DModel``; same values.

    Args:
        state: what ``state_dict()`` of a text-to-video or image-to-video expert of A14B returns.
    """
    pattern = re.compile(r"(?<![^.])(" + "|".join(map(re.escape, _DIFFUSERS_NAMES)) + r")(?![^.])")
    return {pattern.sub(lambda match: _DIFFUSERS_NAMES[match[1]], name): value for name, value in state.items()}
