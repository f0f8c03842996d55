"""TinyWan: a small, trained Wan2.2 with two experts, for judging quality where there is no 126 GB of weights.

Two experts of the hosts' own classes split at boundary 0.875, a causal Wan VAE (time 4x, space 8x), and a text encoder
for a closed vocabulary, trained from nothing on procedural clips whose motion is known (`halfframe.tinywan.clips`). It
loads without a download as a diffusers ``WanPipeline`` and as the official ``WanT2V``.
"""

from halfframe.tinywan.clips import Scene, Thing, parse_prompt, random_scene
from halfframe.tinywan.generation import generate
from halfframe.tinywan.model import load_diffusers, load_wan
from halfframe.tinywan.truth import Sighting, measure

__all__ = [
    "Scene",
    "Sighting",
    "Thing",
    "generate",
    "load_diffusers",
    "load_wan",
    "measure",
    "parse_prompt",
    "random_scene",
]
