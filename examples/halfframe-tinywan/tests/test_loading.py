"""Both hosts load TinyWan and agree; halfframe works on it."""

from __future__ import annotations

import importlib.util
from importlib import resources
from typing import Any

import pytest
from halfframe_tinywan import generate, load_diffusers, load_wan

import halfframe

PROMPT = "a big red ball over moss"


TRAINED = (resources.files("halfframe_tinywan") / "weights" / "vae.safetensors").is_file()
trained = pytest.mark.skipif(not TRAINED, reason="no trained weights are here")


@pytest.mark.skipif(TRAINED, reason="trained weights are here")
def test_weights_that_are_not_here_are_told() -> None:
    with pytest.raises(halfframe.HalfframeError, match="are not here; train them, as its README says"):
        load_diffusers()


@pytest.fixture(scope="module")
def hosts() -> tuple[Any, Any]:
    for host in ("diffusers", "wan"):  # importing wan itself would import its speech models
        if importlib.util.find_spec(host) is None:
            pytest.skip(f"needs {host}")
    return load_diffusers(), load_wan()


@trained
def test_the_weights_are_small_enough_for_a_repository() -> None:
    folder = resources.files("halfframe_tinywan") / "weights"
    sizes = {path.name: len(path.read_bytes()) for path in folder.iterdir() if path.name.endswith(".safetensors")}
    assert set(sizes) == {f"{name}.safetensors" for name in ("vae", "high_noise", "low_noise")}
    assert sum(sizes.values()) < 60e6


@trained
@pytest.mark.parametrize("strategy", [None, "interleave"])
def test_hosts_agree(hosts: tuple[Any, Any], strategy: str | None) -> None:
    """Their schedulers differ in the last digits of sigma, hence the tolerance."""
    clips = []
    for pipe in hosts:
        if strategy is None:
            clips.append(generate(pipe, [PROMPT], [0], steps=4, video_frames=17))
        else:
            with halfframe.enabled(pipe, strategy):
                clips.append(generate(pipe, [PROMPT], [0], steps=4, video_frames=17))
    assert clips[0].shape == clips[1].shape == (1, 3, 17, 96, 96)
    assert (clips[0] - clips[1]).abs().mean() < 0.01
    assert clips[0].std() > 0.02  # not one colour


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"prompts": ["a woman walking in a park"], "seeds": [0]}, "is not in TinyWan's language"),
        ({"prompts": [PROMPT], "seeds": [0, 1]}, "needed: "),
        ({"prompts": PROMPT, "seeds": [0]}, "needed: "),
        ({"prompts": [PROMPT], "seeds": [0], "video_frames": 6}, "needed: "),
        ({"prompts": [PROMPT], "seeds": [0], "guidance": (3.0, 0.5)}, "needed: "),
    ],
)
def test_what_cannot_work_is_refused(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(halfframe.OptionError, match=message):
        generate(object(), **arguments)
