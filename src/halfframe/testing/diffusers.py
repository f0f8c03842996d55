"""diffusers pipelines with random weights: its own classes, unmodified; tokenizer and text encoder are stood in for."""

from __future__ import annotations

import importlib
import re
import types
from typing import Any, TypeVar

import torch
from torch import Tensor

from halfframe.testing.sizes import TINY, WanSizes, default_dtype, seed_of

__all__ = [
    "StandInTokenEncoder",
    "StandInTokenizer",
    "diffusers_from_wan_state",
    "diffusers_modular",
    "diffusers_transformer",
    "diffusers_vae",
    "tiny_diffusers_i2v",
    "tiny_diffusers_t2v",
]


class StandInTokenizer:
    """A tokenizer as diffusers' pipelines see it: every token of a prompt is one number, made from the whole prompt.

    Args:
        text_len: tokens of a prompt; the rest up to ``max_length`` is padding.
    """

    def __init__(self, text_len: int = TINY.text_len) -> None:
        self._text_len = text_len

    def __call__(self, texts: list[str], *, max_length: int, **_: Any) -> types.SimpleNamespace:
        """``input_ids`` and ``attention_mask``, both ``(len(texts), max_length)``."""
        seeds = torch.tensor([seed_of(text) for text in texts])
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


def diffusers_modular(pipe: Any, guidance_scale: float = 5.0) -> Any:
    """A modular pipeline, ``Wan22Blocks`` or ``Wan22Image2VideoBlocks``, of the very parts of a classic `pipe`.

    Args:
        pipe: a ``WanPipeline`` or ``WanImageToVideoPipeline``.
        guidance_scale: of both experts' guiders; the classic pipelines' default.
    """
    diffusers = importlib.import_module("diffusers")
    conditioned = pipe.transformer.config.in_channels != pipe.transformer.config.out_channels
    blocks = diffusers.Wan22Image2VideoBlocks() if conditioned else diffusers.Wan22Blocks()
    modular = blocks.init_pipeline()
    modular.update_components(
        boundary_ratio=pipe.config.boundary_ratio,
        **{name: part for name, part in pipe.components.items() if name in modular.component_names},
        **{name: diffusers.ClassifierFreeGuidance(guidance_scale) for name in ("guider", "guider_2")},
    )
    for block in modular._blocks.sub_blocks["denoise"].sub_blocks.values():
        if hasattr(block, "set_progress_bar_config"):
            block.set_progress_bar_config(disable=True)
    return modular


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
    with default_dtype(dtype):
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
