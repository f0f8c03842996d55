"""The custom node's folder, loaded by ComfyUI, and its example workflows run by ComfyUI's executor."""

from __future__ import annotations

import json
import logging
import os
from pathlib import Path
from typing import Any

import pytest
import tomllib
import torch
from torch import Tensor

import halfframe
from halfframe import Recipe
from halfframe.hosts.comfyui import patch_model

from .experts import Experts
from .graphs import Graphs, with_lora
from .sampling import shifted, two_stages

FOLDER = Path(__file__).parents[2] / "examples" / "comfyui-halfframe"
WORKFLOWS = sorted((FOLDER / "example_workflows").glob("*.json"))
SMALL = {"width": 48, "height": 32, "length": 33}
SIZES = {"EmptyHunyuanLatentVideo": SMALL, "WanImageToVideo": SMALL}


@pytest.fixture(scope="module")
def t2v_graphs(t2v_experts: Experts) -> Graphs:
    """An executor with text-to-video models."""
    return Graphs(t2v_experts, [FOLDER])


@pytest.fixture(scope="module")
def i2v_graphs(i2v_experts: Experts) -> Graphs:
    """An executor with image-to-video models."""
    return Graphs(i2v_experts, [FOLDER])


def frames(latents: Tensor) -> Tensor:
    """What the stand-in VAE makes of latents."""
    return latents[0, :3].movedim(0, -1)


def test_there_are_three_workflows() -> None:
    assert [path.name for path in WORKFLOWS] == [
        "wan2.2_i2v_20_steps.json",
        "wan2.2_t2v_20_steps.json",
        "wan2.2_t2v_4_steps_lightx2v.json",
    ]


@pytest.mark.parametrize("path", WORKFLOWS, ids=lambda path: path.stem)
def test_workflow(path: Path, request: pytest.FixtureRequest, caplog: pytest.LogCaptureFixture) -> None:
    kind = "i2v" if "i2v" in path.name else "t2v"
    graphs: Graphs = request.getfixturevalue(f"{kind}_graphs")
    with caplog.at_level(logging.INFO, logger="halfframe"):
        (video,) = graphs.run(graphs.prompt(path, **SIZES))
    lines = [record.getMessage() for record in caplog.records if record.name.startswith("halfframe")]
    assert len(lines) == 1
    assert "of 9 latent frames" in lines[0]
    without = graphs.prompt(path, **SIZES, Halfframe={"start_percent": 0.99})
    assert video.shape == (9, 4, 6, 3)
    with pytest.warns(halfframe.HalfframeWarning, match="nothing was skipped"):
        (plain,) = graphs.run(without)
    assert not torch.allclose(video, plain, atol=1e-2)


def test_node_does_what_patch_model_does(t2v_graphs: Graphs, t2v_experts: Experts) -> None:
    (path,) = (path for path in WORKFLOWS if "lightx2v" in path.name)
    settings = {"strategy": "interleave", "stride": 3, "first_steps": 1, "start_percent": 0.0}
    (video,) = t2v_graphs.run(t2v_graphs.prompt(path, **SIZES, Halfframe=settings))
    high, low = (shifted(with_lora(model, 1.0)) for model in (t2v_experts.high, t2v_experts.low))
    patched = patch_model(high, "interleave", stride=3, until=1)
    expected = two_stages(patched, low, t2v_experts, steps=4, split=2, cfg=1.0, seed=42)
    torch.testing.assert_close(video, frames(expected))


def test_another_prompt_in_the_queue(t2v_graphs: Graphs) -> None:
    """ComfyUI keeps what nodes gave; the same prompt again, and another, go on with the same patched model."""
    path = next(path for path in WORKFLOWS if "t2v_20" in path.name)
    first = t2v_graphs.prompt(path, **SIZES)
    (video,) = t2v_graphs.run(first)
    other = t2v_graphs.prompt(path, **SIZES, KSamplerAdvanced={"noise_seed": 5})
    (another,) = t2v_graphs.run(other)
    (again,) = t2v_graphs.run(first)
    assert torch.equal(video, again)
    assert not torch.allclose(video, another, atol=1e-2)


def recipe_prompt(graphs: Graphs, recipe: str) -> dict[str, Any]:
    """The 20 steps' workflow with *Halfframe Recipe* in place of *Halfframe*, at 8 steps split at 5."""
    path = next(path for path in WORKFLOWS if "t2v_20" in path.name)
    prompt = graphs.prompt(path, **SIZES, KSamplerAdvanced={"steps": 8})
    by_type: dict[str, list[str]] = {}
    for key, node in prompt.items():
        by_type.setdefault(node["class_type"], []).append(key)
    (halved,) = by_type["Halfframe"]
    high, low = by_type["ModelSamplingSD3"]
    first, second = by_type["KSamplerAdvanced"]
    inputs = {"high_noise_model": [high, 0], "low_noise_model": [low, 0], "recipe": recipe}
    prompt[halved] = {"class_type": "HalfframeRecipe", "inputs": inputs}
    prompt[first]["inputs"] |= {"model": [halved, 0], "end_at_step": 5}
    prompt[second]["inputs"] |= {"model": [halved, 1], "start_at_step": 5}
    return prompt


def test_recipe_node(t2v_graphs: Graphs, t2v_experts: Experts, tmp_path: Path) -> None:
    moves = ("merge:2", "full", "reuse", "full+cond", "full", "full", "interleave:2", "full+delta")
    recipe = Recipe(moves, high_noise_steps=5)
    recipe.save(tmp_path / "fast.json")
    (video,) = t2v_graphs.run(recipe_prompt(t2v_graphs, str(tmp_path / "fast.json")))
    high, low = shifted(t2v_experts.high, 8.0), shifted(t2v_experts.low, 8.0)
    patched = patch_model(high, recipe), patch_model(low, recipe, expert="low")
    expected = two_stages(*patched, t2v_experts, steps=8, split=5, seed=42)
    torch.testing.assert_close(video, frames(expected))


def test_recipe_is_read_again_when_it_changes(t2v_graphs: Graphs, tmp_path: Path) -> None:
    path = tmp_path / "recipe.json"
    videos = []
    for index, first in enumerate(("full", "merge:4")):
        Recipe((first, *["merge:2"] * 4, *["full"] * 3), high_noise_steps=5).save(path)
        os.utime(path, (index, index))
        videos += t2v_graphs.run(recipe_prompt(t2v_graphs, str(path)))
    assert not torch.allclose(videos[0], videos[1], atol=1e-2)


def test_mistakes_reach_the_user(t2v_graphs: Graphs, tmp_path: Path) -> None:
    path = next(path for path in WORKFLOWS if "t2v_20" in path.name)
    for settings, message in (
        ({"strategy": "self-duplicate", "stride": 3}, "stride"),
        ({"options": "wobble=1"}, "wobble"),
        ({"start_percent": 0.5, "end_percent": 0.5}, "start_percent must be less"),
    ):
        with pytest.raises(RuntimeError, match=message):
            t2v_graphs.run(t2v_graphs.prompt(path, **SIZES, Halfframe=settings))
    with pytest.raises(RuntimeError, match="cannot be read"):
        t2v_graphs.run(recipe_prompt(t2v_graphs, str(tmp_path / "nowhere.json")))


def test_every_input_has_a_tooltip(t2v_graphs: Graphs) -> None:
    for name in ("Halfframe", "HalfframeRecipe"):
        types = t2v_graphs.node(name).INPUT_TYPES()
        for kind in ("required", "optional"):
            for given, (_, *options) in types.get(kind, {}).items():
                assert options, given
                assert options[0].get("tooltip"), given


def test_folder_is_what_the_registry_takes() -> None:
    project = tomllib.loads((FOLDER / "pyproject.toml").read_text(encoding="utf-8"))
    assert project["tool"]["comfy"]["DisplayName"]
    assert any(line.startswith("halfframe") for line in project["project"]["dependencies"])
    assert (FOLDER / "LICENSE").read_bytes() == (FOLDER.parents[1] / "LICENSE").read_bytes()
    for path in WORKFLOWS:
        workflow = json.loads(path.read_text(encoding="utf-8"))
        assert workflow["last_node_id"] == max(node["id"] for node in workflow["nodes"])
