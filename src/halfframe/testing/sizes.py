"""What the pipelines for tests have in common: their sizes, seeds of prompts, a dtype to build in."""

from __future__ import annotations

import contextlib
import hashlib
from collections.abc import Iterator
from dataclasses import dataclass

import torch

__all__ = ["A14B", "TINY", "WanSizes", "default_dtype", "seed_of"]


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


def seed_of(text: str) -> int:
    """A seed made of a prompt."""
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big") >> 1


@contextlib.contextmanager
def default_dtype(dtype: torch.dtype) -> Iterator[None]:
    """What is built within is built in `dtype`: A14B in float32 first would take twice the memory."""
    usual = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        yield
    finally:
        torch.set_default_dtype(usual)
