"""TinyWan: a small, trained Wan2.2 with two experts, a toy for judging quality without 126 GB of weights."""

import importlib as _importlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from halfframe_tinywan.comparing import tinywan_generate
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
    "tinywan_generate",
]

# Imported when first asked for: `halfframe demo --help` needs no torch.
_MODULES = {
    "comparing": ("tinywan_generate",),
    "generation": ("first_frame", "generate", "settings"),
    "language": ("Scene", "Thing", "held_out_prompts", "parse_prompt", "random_scene"),
    "models": ("load_diffusers", "load_wan"),
    "truth": ("Sighting", "Truth", "measure", "measure_all"),
}
_HOMES = {name: f"halfframe_tinywan.{module}" for module, names in _MODULES.items() for name in names}


if not TYPE_CHECKING:  # a type checker that sees it would accept any name

    def __getattr__(name: str) -> object:
        if name not in _HOMES:
            raise AttributeError(f"module 'halfframe_tinywan' has no attribute {name!r}", name=name)
        value = getattr(_importlib.import_module(_HOMES[name]), name)
        globals()[name] = value
        return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
