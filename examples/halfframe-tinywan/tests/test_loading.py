"""Both hosts load TinyWan and agree; halfframe works on it."""

from __future__ import annotations

import importlib.util
from importlib import resources
from typing import Any

import numpy
import pytest
import torch
from halfframe_tinywan import first_frame, generate, load_diffusers, load_wan, settings
from halfframe_tinywan.models import lora_path
from PIL import Image

import halfframe

PROMPT = "a big red ball over moss"
SHORT: dict[str, Any] = {"steps": 4, "video_frames": 17}


def needs(*names: str) -> None:
    for name in names:  # importing wan itself would import its speech models
        if importlib.util.find_spec(name) is None:
            pytest.skip(f"needs {name}")


def test_the_weights_are_small_enough_for_a_repository() -> None:
    folder = resources.files("halfframe_tinywan") / "weights"
    sizes = {path.name: len(path.read_bytes()) for path in folder.iterdir() if path.name.endswith(".safetensors")}
    experts = {f"{kind}_{side}_noise.safetensors" for kind in ("t2v", "i2v", "lora") for side in ("high", "low")}
    assert set(sizes) == {"vae.safetensors", *experts}
    assert sum(sizes.values()) < 60e6


@pytest.mark.parametrize("strategy", [None, "interleave"])
@pytest.mark.parametrize("kind", ["t2v", "lora", "i2v"])
def test_hosts_agree(kind: str, strategy: str | None) -> None:
    """Their schedulers differ in the last digits of sigma, hence the tolerance."""
    needs("diffusers", "wan")
    given = {**settings(kind), **SHORT}
    if kind == "i2v":
        given["images"] = [first_frame(PROMPT, 1_000_000)]
    clips = []
    for pipe in (load_diffusers(kind), load_wan(kind)):
        if strategy is None:
            clips.append(generate(pipe, [PROMPT], [0], **given))
        else:
            with halfframe.enabled(pipe, strategy):
                clips.append(generate(pipe, [PROMPT], [0], **given))
    assert clips[0].shape == clips[1].shape == (1, 3, 17, 96, 96)
    assert (clips[0] - clips[1]).abs().mean() < 0.01
    assert clips[0].std() > 0.02  # not one colour


def test_the_image_is_the_first_frame() -> None:
    needs("diffusers")
    image = first_frame(PROMPT, 1_000_000)
    clip = generate(load_diffusers("i2v"), [PROMPT], [0], **{**settings("i2v"), **SHORT}, images=[image])
    wanted = torch.from_numpy(numpy.asarray(image).copy()).permute(2, 0, 1) / 255
    distances = (clip[0] - wanted[:, None]).square().mean(dim=(0, 2, 3))
    assert distances[0] < 0.01, distances  # 20 dB, in a fifth of the steps
    assert distances[-1] > 3 * distances[0], distances  # and then it moves


def test_diffusers_own_loader_of_loras_gives_the_same() -> None:
    needs("diffusers", "peft")
    pipe = load_diffusers()
    assert pipe.scheduler.config.flow_shift == 12
    pipe.load_lora_weights(str(lora_path("high_noise")))
    pipe.load_lora_weights(str(lora_path("low_noise")), load_into_transformer_2=True)
    given = {**settings("lora"), "video_frames": 5}
    loaded, merged = (generate(one, [PROMPT], [0], **given) for one in (pipe, load_diffusers("lora")))
    assert (loaded - merged).abs().max() < 2e-3
    plain = generate(load_diffusers(), [PROMPT], [0], **given)
    assert (plain - merged).abs().max() > 0.1


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"prompts": ["a woman walking in a park"], "seeds": [0]}, "is not in TinyWan's language"),
        ({"prompts": [PROMPT], "seeds": [0, 1]}, "needed: "),
        ({"prompts": PROMPT, "seeds": [0]}, "needed: "),
        ({"prompts": [PROMPT], "seeds": [0], "video_frames": 6}, "needed: "),
        ({"prompts": [PROMPT], "seeds": [0], "guidance": (3.0, 0.5)}, "needed: "),
        ({"prompts": [PROMPT], "seeds": [0], "images": [Image.new("RGB", (96, 96))]}, "no images, it is text-to-video"),
    ],
)
def test_what_cannot_work_is_refused(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(halfframe.OptionError, match=message):
        generate(object(), **arguments)


def test_a_kind_that_there_is_not() -> None:
    with pytest.raises(halfframe.OptionError, match='kind=\'ti2v\'; needed: "t2v", "lora"'):
        load_diffusers("ti2v")
