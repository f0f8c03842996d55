"""The VAE and the experts for training: the weights of diffusers' own, in fewer and larger kernels.

`encode` and `decode` take a whole clip at once, where diffusers goes through it in pieces of four frames. `velocity` is
``WanTransformer3DModel`` with matrix products in bfloat16 and all else in float32. Tests hold them to diffusers' own.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

__all__ = ["block", "decode", "encode", "rotary", "velocity"]

Weights = dict[str, Tensor]


def encode(vae: Any, video: Tensor) -> Tensor:
    """Mean of the latents, not scaled, ``(B, 16, f, H / 8, W / 8)`` of ``(B, 3, F, H, W)``."""
    encoder = vae.encoder
    x = encoder.conv_in(video)
    for layer in encoder.down_blocks:
        if type(layer).__name__ != "WanResample":
            x = layer(x)
            continue
        x = _per_frame(layer.resample, x)
        if layer.mode == "downsample3d":  # the first frame is not compressed in time
            x = torch.cat([x[:, :, :1], layer.time_conv(x)], dim=2) if x.shape[2] > 1 else x
    x = encoder.mid_block(x)
    moments: Tensor = vae.quant_conv(encoder.conv_out(encoder.nonlinearity(encoder.norm_out(x))))
    return moments.chunk(2, dim=1)[0]


def decode(vae: Any, latents: Tensor) -> Tensor:
    """Video ``(B, 3, F, H, W)`` of latents as `encode` gives them; not clamped to -1..1, which would stop gradients."""
    decoder = vae.decoder
    x = decoder.mid_block(decoder.conv_in(vae.post_quant_conv(latents)))
    for block in decoder.up_blocks:
        for resnet in block.resnets:
            x = resnet(x)
        for layer in block.upsamplers or ():
            if layer.mode == "upsample3d" and x.shape[2] > 1:
                pairs = layer.time_conv(x[:, :, 1:]).unflatten(1, (2, -1))
                x = torch.cat([x[:, :, :1], torch.stack(pairs.unbind(1), dim=3).flatten(2, 3)], dim=2)
            x = _per_frame(layer.resample, x)
    video: Tensor = decoder.conv_out(decoder.nonlinearity(decoder.norm_out(x)))
    return video


def _per_frame(layer: Any, x: Tensor) -> Tensor:
    frames = layer(x.transpose(1, 2).flatten(0, 1))
    return frames.unflatten(0, (x.shape[0], x.shape[2])).transpose(1, 2)


def rotary(model: Any, latents: Tensor) -> tuple[Tensor, Tensor]:
    """Cosines and sines ``(tokens, head_dim / 2)`` of the positions of `latents`' patches."""
    cos, sin = model.rope(latents)
    return cos[0, :, 0, 0::2].float().contiguous(), sin[0, :, 0, 1::2].float().contiguous()


def velocity(
    model: Any, weights: Weights, x: Tensor, timestep: Tensor, text: Tensor, tables: tuple[Tensor, Tensor]
) -> Tensor:
    """What an expert predicts, ``(B, 16, f, h, w)``.

    Args:
        model: a ``WanTransformer3DModel``, for its sizes.
        weights: its parameters by name, or others in their place.
        x: noisy latents, ``(B, C, f, h, w)``.
        timestep: 0..1000, ``(B,)``.
        text: embeddings, ``(B, L, text_dim)``.
        tables: of `rotary`.
    """
    count, _, frames, height, width = x.shape
    patches = x.unflatten(4, (-1, 2)).unflatten(3, (-1, 2)).permute(0, 2, 3, 5, 1, 4, 6).flatten(4).flatten(1, 3)
    hidden = _linear(patches, weights, "patch_embedding").float()
    time = model.condition_embedder.timesteps_proj(timestep)
    time = _linear(time, weights, "condition_embedder.time_embedder.linear_1", torch.float32)
    time = _linear(functional.silu(time), weights, "condition_embedder.time_embedder.linear_2", torch.float32)
    modulation = _linear(functional.silu(time), weights, "condition_embedder.time_proj", torch.float32)
    modulation = modulation.unflatten(1, (6, -1))
    text = _linear(text, weights, "condition_embedder.text_embedder.linear_1")
    text = _linear(functional.gelu(text, approximate="tanh"), weights, "condition_embedder.text_embedder.linear_2")
    for number in range(len(model.blocks)):
        prefix = f"blocks.{number}."
        own = {name.removeprefix(prefix): weight for name, weight in weights.items() if name.startswith(prefix)}
        hidden = block(hidden, own, modulation, text, *tables, model.config.num_attention_heads)
    shift, scale = (weights["scale_shift_table"] + time[:, None]).chunk(2, dim=1)
    out = _linear(_layer_norm(hidden) * (1 + scale) + shift, weights, "proj_out").float()
    out = out.view(count, frames, height // 2, width // 2, 2, 2, -1).permute(0, 6, 1, 2, 4, 3, 5)
    return out.reshape(count, -1, frames, height, width)


def block(
    hidden: Tensor, weights: Weights, modulation: Tensor, text: Tensor, cos: Tensor, sin: Tensor, heads: int
) -> Tensor:
    """One ``WanTransformerBlock``. Compile this one, not the whole model: it takes a sixth of the time."""

    def attention(name: str, value: Tensor, context: Tensor, rotate: bool) -> Tensor:
        query = _rms(_linear(value, weights, f"{name}.to_q"), weights[f"{name}.norm_q.weight"])
        key = _rms(_linear(context, weights, f"{name}.to_k"), weights[f"{name}.norm_k.weight"])
        parts = [part.unflatten(2, (heads, -1)) for part in (query, key)]
        if rotate:
            parts = [_rotated(part, cos, sin) for part in parts]
        parts.append(_linear(context, weights, f"{name}.to_v").unflatten(2, (heads, -1)))
        mixed = functional.scaled_dot_product_attention(*(part.bfloat16().transpose(1, 2) for part in parts))
        return _linear(mixed.transpose(1, 2).flatten(2), weights, f"{name}.to_out.0").float()

    shift, scale, gate, shift_2, scale_2, gate_2 = (weights["scale_shift_table"] + modulation).chunk(6, dim=1)
    normed = (_layer_norm(hidden) * (1 + scale) + shift).bfloat16()
    hidden = hidden + attention("attn1", normed, normed, True) * gate
    normed = (_layer_norm(hidden) * weights["norm2.weight"] + weights["norm2.bias"]).bfloat16()
    hidden = hidden + attention("attn2", normed, text, False)
    normed = (_layer_norm(hidden) * (1 + scale_2) + shift_2).bfloat16()
    inner = functional.gelu(_linear(normed, weights, "ffn.net.0.proj"), approximate="tanh")
    return hidden + _linear(inner, weights, "ffn.net.2").float() * gate_2


_EPS = 1e-6  # of every norm of Wan


def _linear(x: Tensor, weights: Weights, name: str, dtype: torch.dtype = torch.bfloat16) -> Tensor:
    weight = weights[f"{name}.weight"].flatten(1)
    return functional.linear(x.to(dtype), weight.to(dtype), weights[f"{name}.bias"].to(dtype))


def _layer_norm(x: Tensor) -> Tensor:
    return functional.layer_norm(x, x.shape[-1:], eps=_EPS)


def _rms(x: Tensor, weight: Tensor) -> Tensor:
    x = x.float()
    return x * torch.rsqrt(x.square().mean(dim=-1, keepdim=True) + _EPS) * weight


def _rotated(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """``(B, L, heads, D)``, pairs of neighbouring channels turned."""
    a, b = x.unflatten(-1, (-1, 2)).unbind(-1)
    cos, sin = cos[:, None], sin[:, None]
    return torch.stack([a * cos - b * sin, a * sin + b * cos], dim=-1).flatten(-2)
