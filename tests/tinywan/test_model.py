"""TinyWan as it is shipped: both hosts load it, agree, and follow the prompt; halfframe works on it."""

from __future__ import annotations

from importlib import resources
from typing import Any

import pytest
import torch

import halfframe
from halfframe.testing import tiny_wan_t2v
from halfframe.tinywan import generate, load_diffusers, load_wan
from halfframe.tinywan.model import SIZES, _wan_vae_name, build_vae

PROMPT = "a big red ball moves left fast over sand"


@pytest.fixture(scope="module")
def hosts() -> tuple[Any, Any]:
    return load_diffusers(), load_wan()


def test_the_weights_are_small_enough_for_a_repository() -> None:
    folder = resources.files("halfframe.tinywan") / "weights"
    sizes = {path.name: len(path.read_bytes()) for path in folder.iterdir() if path.name.endswith(".safetensors")}
    assert set(sizes) == {f"{name}.safetensors" for name in ("vae", "text_encoder", "high_noise", "low_noise")}
    assert sum(sizes.values()) < 30e6


def test_the_vaes_names_map_onto_the_official_ones() -> None:
    """With random weights, so that no two of them are alike: the same names, all of them, and the same function."""
    torch.manual_seed(0)
    ours, official = build_vae().eval(), tiny_wan_t2v(sizes=SIZES).vae
    per_level = SIZES.vae_res_blocks + 2
    official.model.load_state_dict({_wan_vae_name(key, per_level): value for key, value in ours.state_dict().items()})
    official.mean, official.std = torch.zeros(16), torch.ones(16)
    official.scale = [official.mean, official.std]
    video, latents = torch.randn(3, 9, 32, 32), torch.randn(16, 3, 4, 4)
    with torch.no_grad():
        torch.testing.assert_close(ours.encode(video[None]).latent_dist.mode()[0], official.encode([video])[0])
        torch.testing.assert_close(ours.decode(latents[None]).sample[0], official.decode([latents])[0])


@pytest.mark.parametrize("strategy", [None, "self-duplicate", "interleave"])
def test_hosts_agree(hosts: tuple[Any, Any], strategy: str | None) -> None:
    """Their solvers differ in the last digits of sigma, hence the tolerance."""
    clips = []
    for pipe in hosts:
        with (
            halfframe.enabled(pipe, strategy)
            if strategy
            else halfframe.enabled(pipe, None, guidance=halfframe.Guidance(1))
        ):
            clips.append(generate(pipe, [PROMPT], [0], num_steps=4, num_frames=17))
    assert clips[0].shape == clips[1].shape == (1, 3, 17, 96, 96)
    assert (clips[0] - clips[1]).abs().mean() < 0.01
    assert clips[0].std() > 0.02  # not one colour


def test_prompts_outside_the_language_are_refused(hosts: tuple[Any, Any]) -> None:
    for pipe in hosts:
        with pytest.raises(halfframe.OptionError, match="is not in TinyWan's language"):
            generate(pipe, ["a woman walking in a park"], [0], num_steps=1, num_frames=5)


@pytest.mark.parametrize(
    "arguments",
    [
        {"prompts": [PROMPT], "seeds": [0, 1]},
        {"prompts": PROMPT, "seeds": [0]},
        {"prompts": [], "seeds": []},
        {"prompts": [PROMPT], "seeds": [-1]},
        {"prompts": [PROMPT], "seeds": [0], "num_frames": 6},
        {"prompts": [PROMPT], "seeds": [0], "guide_scale": (3.0, 0.5)},
    ],
)
def test_numbers_that_hosts_take_differently_are_refused(hosts: tuple[Any, Any], arguments: dict[str, Any]) -> None:
    for pipe in hosts:
        with pytest.raises(halfframe.OptionError, match="needed: "):
            generate(pipe, **arguments)
