"""ComfyUI without halfframe: it knows the weights, and makes of them what the official package does."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from .experts import Experts, assert_same, image_conditions, normalised, official_latents
from .sampling import SEED, custom, empty, shifted, stage, table, two_stages


def test_weights_are_taken_for_wan(t2v_experts: Experts, i2v_experts: Experts, comfy: Any) -> None:
    for model, channels in ((t2v_experts.high, 16), (i2v_experts.low, 36)):
        assert type(model.model) is comfy.comfy.model_base.WAN21
        assert model.model.diffusion_model.in_dim == channels


@pytest.mark.parametrize("cfg", [1.0, 3.5])
def test_text_to_video_agrees_with_the_official_package(t2v_experts: Experts, cfg: float) -> None:
    high, low = shifted(t2v_experts.high), shifted(t2v_experts.low)
    latents = two_stages(high, low, t2v_experts, steps=8, split=4, cfg=cfg)
    expected = official_latents(t2v_experts.pipe, table(high, 8), 4, cfg=cfg, seed=SEED)
    assert_same(normalised(latents)[0], expected)


def test_image_to_video_agrees_with_the_official_package(i2v_experts: Experts) -> None:
    high, low = shifted(i2v_experts.high), shifted(i2v_experts.low)
    conditions = i2v_experts.conditions(**image_conditions(i2v_experts.pipe))
    latents = two_stages(high, low, i2v_experts, steps=4, split=2, conditions=conditions)
    expected = official_latents(i2v_experts.pipe, table(high, 4), 2, cfg=3.5, seed=SEED)
    assert_same(normalised(latents)[0], expected)


def test_every_sampler_node_gives_the_same(t2v_experts: Experts) -> None:
    high, low = shifted(t2v_experts.high), shifted(t2v_experts.low)
    expected = two_stages(high, low, t2v_experts, steps=4, split=2)
    sigmas = table(high, 4)
    middle = custom(high, t2v_experts, empty(), sigmas[:3])
    latents = custom(low, t2v_experts, middle, sigmas[2:], seed=None)["samples"]
    assert torch.equal(latents, expected)
    first = stage(high, t2v_experts, empty(), steps=4, end=1)
    second = stage(high, t2v_experts, first, steps=4, start=1, end=2)
    three = stage(low, t2v_experts, second, steps=4, start=2)["samples"]
    assert_same(three, expected)
