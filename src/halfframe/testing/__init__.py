"""Pipelines of the real host classes with random weights: for testing strategies and hooks, demos and benchmarks."""

from halfframe.testing.diffusers import (
    StandInTokenEncoder,
    StandInTokenizer,
    diffusers_from_wan_state,
    diffusers_modular,
    diffusers_transformer,
    diffusers_vae,
    tiny_diffusers_i2v,
    tiny_diffusers_t2v,
)
from halfframe.testing.importing import import_wan, sdpa_attention, use_sdpa
from halfframe.testing.sizes import A14B, TINY, WanSizes
from halfframe.testing.wan import StandInTextEncoder, tiny_wan_i2v, tiny_wan_t2v

__all__ = [
    "A14B",
    "TINY",
    "StandInTextEncoder",
    "StandInTokenEncoder",
    "StandInTokenizer",
    "WanSizes",
    "diffusers_from_wan_state",
    "diffusers_modular",
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
