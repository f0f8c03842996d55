"""TinyWan's experts and VAE: the hosts' own classes at sizes that fit in a repository, and their trained weights."""

from __future__ import annotations

import importlib
import re
from importlib import resources
from typing import Any

from torch import Tensor

from halfframe.errors import HalfframeError, OptionError
from halfframe.testing import (
    WanSizes,
    diffusers_from_wan_state,
    diffusers_transformer,
    diffusers_vae,
    tiny_diffusers_i2v,
    tiny_diffusers_t2v,
    tiny_wan_i2v,
    tiny_wan_t2v,
)
from halfframe_tinywan.language import TEXT_DIM, TEXT_LEN, TextEncoder, Tokenizer, WanTextEncoder

__all__ = [
    "BOUNDARY",
    "GUIDANCE",
    "I2V_BOUNDARY",
    "I2V_GUIDANCE",
    "I2V_SHIFT",
    "LORA_SHIFT",
    "LORA_STEPS",
    "SHIFT",
    "WAN_SIZES",
    "build_expert",
    "build_vae",
    "load_diffusers",
    "load_vae",
    "load_wan",
    "lora_path",
]

BOUNDARY = 0.875
SHIFT = 12.0
"""Boundary and schedule as of T2V-A14B."""
GUIDANCE = (3.0, 4.0)
"""Guidance scales of the low-noise and of the high-noise expert, as upstream's."""
LORA_STEPS, LORA_SHIFT = 4, 5.0
"""What the LoRA pair was distilled for, at guidance 1: sigmas 1, 0.9375, 0.833 and 0.625, two for each expert."""
I2V_BOUNDARY, I2V_SHIFT, I2V_GUIDANCE = 0.9, 5.0, (3.5, 3.5)
"""As of I2V-A14B."""

WAN_SIZES = WanSizes(
    dim=256,
    ffn_dim=768,
    num_heads=4,
    num_layers=6,
    text_dim=TEXT_DIM,
    text_len=TEXT_LEN,
    freq_dim=64,
    vae_dim=16,
    vae_dim_mult=(1, 2, 4, 4),
    vae_res_blocks=1,
)

State = dict[str, Tensor]


def build_expert(in_channels: int = 16) -> Any:
    """A diffusers ``WanTransformer3DModel`` of `WAN_SIZES`, freshly initialised; 36 channels for image-to-video."""
    return diffusers_transformer(WAN_SIZES, in_channels)


def build_vae() -> Any:
    """A diffusers ``AutoencoderKLWan`` of `WAN_SIZES`, freshly initialised."""
    return diffusers_vae(WAN_SIZES)


def load_vae() -> Any:
    """The trained VAE as a diffusers ``AutoencoderKLWan``, in evaluation mode."""
    vae = diffusers_vae(WAN_SIZES).requires_grad_(False).eval()
    state, mean, std = _vae_state()
    vae.load_state_dict(state)
    vae.register_to_config(latents_mean=mean.tolist(), latents_std=std.tolist())
    return vae


def load_diffusers(kind: str = "t2v") -> Any:
    """TinyWan as a diffusers pipeline on the CPU, trained weights and all; nothing is downloaded.

    Call it through `halfframe_tinywan.generate`, or with ``max_sequence_length=TEXT_LEN``.

    Args:
        kind: ``"t2v"``, a ``WanPipeline``; ``"lora"``, the same with the 4-step LoRA pair merged into its experts;
            ``"i2v"``, a ``WanImageToVideoPipeline``.
    """
    _check(kind)
    build = tiny_diffusers_i2v if kind == "i2v" else tiny_diffusers_t2v
    diffusers = importlib.import_module("diffusers")
    pipe = build(
        sizes=WAN_SIZES,
        text_encoder=TextEncoder(),
        tokenizer=Tokenizer(),
        vae=load_vae(),
        boundary_ratio=I2V_BOUNDARY if kind == "i2v" else BOUNDARY,
        scheduler=diffusers.UniPCMultistepScheduler(
            prediction_type="flow_prediction",
            use_flow_sigmas=True,
            flow_shift={"t2v": SHIFT, "lora": LORA_SHIFT, "i2v": I2V_SHIFT}[kind],
        ),
    )
    pipe.transformer.load_state_dict(_expert_state(kind, "high_noise"))
    pipe.transformer_2.load_state_dict(_expert_state(kind, "low_noise"))
    return pipe


def load_wan(kind: str = "t2v") -> Any:
    """TinyWan as an official ``WanT2V`` or ``WanI2V`` on the CPU: the weights of `load_diffusers`, official names."""
    _check(kind)
    build = tiny_wan_i2v if kind == "i2v" else tiny_wan_t2v
    pipe = build(sizes=WAN_SIZES, text_encoder=WanTextEncoder(TextEncoder()), sample_neg_prompt="")
    for model, name in ((pipe.high_noise_model, "high_noise"), (pipe.low_noise_model, "low_noise")):
        names = diffusers_from_wan_state({key: key for key in model.state_dict()})
        state = _expert_state(kind, name)
        model.load_state_dict({names[key]: value for key, value in state.items()})
    vae_state, mean, std = _vae_state()
    per_level = WAN_SIZES.vae_res_blocks + 2
    pipe.vae.model.load_state_dict({_wan_vae_name(key, per_level): value for key, value in vae_state.items()})
    pipe.vae.mean, pipe.vae.std, pipe.vae.scale = mean, std, [mean, 1.0 / std]
    return pipe


def lora_path(expert: str) -> Any:
    """The file that diffusers' ``load_lora_weights`` takes, of ``"high_noise"`` or ``"low_noise"``."""
    return resources.files("halfframe_tinywan") / "weights" / f"lora_{expert}.safetensors"


def _check(kind: str) -> None:
    if kind not in ("t2v", "lora", "i2v"):
        raise OptionError(f'kind={kind!r}; needed: "t2v", "lora" (text-to-video in 4 steps) or "i2v".')


def _expert_state(kind: str, expert: str) -> State:
    if kind == "i2v":
        return _state(f"i2v_{expert}")
    state = _state(f"t2v_{expert}")
    if kind == "lora":
        lora = _state(f"lora_{expert}")
        for name in {key.rsplit(".lora_", 1)[0] for key in lora}:
            added = lora[f"{name}.lora_B.weight"] @ lora[f"{name}.lora_A.weight"]
            state[f"{name.removeprefix('transformer.')}.weight"] += added
    return state


def _state(name: str) -> State:
    path = resources.files("halfframe_tinywan") / "weights" / f"{name}.safetensors"
    if not path.is_file():
        raise HalfframeError(f"TinyWan's weights {name}.safetensors are not here; train them, as its README says.")
    load = importlib.import_module("safetensors.torch").load
    return {key: tensor.float() for key, tensor in load(path.read_bytes()).items()}


def _vae_state() -> tuple[State, Tensor, Tensor]:
    """The VAE's weights, and mean and deviation of its latents, ``(16,)`` each."""
    state = _state("vae")
    mean, std = state.pop("latents_mean"), state.pop("latents_std")
    return state, mean, std


_WAN_VAE_NAMES = {
    r"^quant_conv": "conv1",
    r"^post_quant_conv": "conv2",
    r"conv_in": "conv1",
    r"mid_block\.resnets\.0": "middle.0",
    r"mid_block\.attentions\.0": "middle.1",
    r"mid_block\.resnets\.1": "middle.2",
    r"norm_out": "head.0",
    r"conv_out": "head.2",
    r"down_blocks": "downsamples",
    r"norm1": "residual.0",
    r"(?<=\d\.)conv1": "residual.2",
    r"norm2": "residual.3",
    r"(?<=\d\.)conv2": "residual.6",
    r"conv_shortcut": "shortcut",
}


def _wan_vae_name(name: str, per_level: int) -> str:
    """The official name of a weight of diffusers' VAE, whose decoder counts blocks per level, not throughout."""
    name = re.sub(
        r"up_blocks\.(\d+)\.(?:resnets\.(\d+)|upsamplers\.0)",
        lambda m: f"upsamples.{int(m[1]) * per_level + (int(m[2]) if m[2] else per_level - 1)}",
        name,
    )
    for pattern, official in _WAN_VAE_NAMES.items():
        name = re.sub(pattern, official, name)
    return name
