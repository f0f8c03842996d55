"""TinyWan: a small, trained Wan2.2 with two experts, a toy for judging quality without 126 GB of weights."""

from halfframe_tinywan.generation import first_frame, generate, settings
from halfframe_tinywan.language import Scene, Thing, held_out_prompts, parse_prompt, random_scene
from halfframe_tinywan.models import load_diffusers, load_wan
from halfframe_tinywan.truth import Sighting, Truth, measure, measure_all

__all__ = [
    "Scene",
    "Sighting",
    "Thing",
    "Truth",
    "first_frame",
    "generate",
    "held_out_prompts",
    "load_diffusers",
    "load_wan",
    "measure",
    "measure_all",
    "parse_prompt",
    "random_scene",
    "settings",
]
