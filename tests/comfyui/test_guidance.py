"""Guidance without its unconditional pass, and recipes, against the official host."""

from __future__ import annotations

from typing import Any

import pytest
import torch

import halfframe
from halfframe import Guidance, Recipe
from halfframe.hosts.comfyui import patch_model

from .experts import Experts, assert_same, image_conditions, normalised, official_latents
from .sampling import SEED, call, custom, empty, shifted, stage, table, two_stages

STEPS, SHIFT, SPLIT = 8, 8.0, 5
CFG = 3.5


def both(experts: Experts, guidance: Guidance, strategy: Any = "interleave", split: int = SPLIT, **more: Any) -> Any:
    """``(ComfyUI's latents, the official host's)`` with `guidance` on the high-noise model."""
    high, low = shifted(experts.high, SHIFT), shifted(experts.low, SHIFT)
    patched = patch_model(high, strategy, guidance=guidance)
    latents = two_stages(patched, low, experts, steps=STEPS, split=split, cfg=CFG, **more)
    with halfframe.enabled(experts.pipe, strategy, guidance=guidance):
        return normalised(latents)[0], official_latents(experts.pipe, table(high, STEPS), split, cfg=CFG, seed=SEED)


@pytest.mark.parametrize("strategy", [None, "interleave", "merge", "self-duplicate"])
@pytest.mark.parametrize(
    "guidance",
    [Guidance(skip_last_high=2), Guidance(skip_last_high=2, mode="delta")],
    ids=["conditional", "delta"],
)
@pytest.mark.filterwarnings("ignore:halfframe. nothing was skipped")
def test_guidance(t2v_experts: Experts, guidance: Guidance, strategy: Any) -> None:
    assert_same(*both(t2v_experts, guidance, strategy))


def test_guidance_in_image_to_video(i2v_experts: Experts) -> None:
    conditions = i2v_experts.conditions(**image_conditions(i2v_experts.pipe))
    guidance = Guidance(skip_last_high=2, mode="delta")
    assert_same(*both(i2v_experts, guidance, split=4, conditions=conditions))


def test_every_second_step(t2v_experts: Experts) -> None:
    """`every` goes for both experts: the low-noise model has it too."""
    high, low = shifted(t2v_experts.high, SHIFT), shifted(t2v_experts.low, SHIFT)
    guidance = Guidance(every=2)
    patched = patch_model(high, "interleave", guidance=guidance)
    second = patch_model(low, None, guidance=guidance, expert="low")
    latents = two_stages(patched, second, t2v_experts, steps=STEPS, split=SPLIT, cfg=CFG)
    with halfframe.enabled(t2v_experts.pipe, "interleave", guidance=guidance):
        expected = official_latents(t2v_experts.pipe, table(high, STEPS), SPLIT, cfg=CFG, seed=SEED)
    assert_same(normalised(latents)[0], expected)


def test_the_unconditional_pass_is_not_made(t2v_experts: Experts) -> None:
    model = shifted(t2v_experts.high, SHIFT)
    seen: list[int] = []
    handle = model.model.diffusion_model.patch_embedding.register_forward_pre_hook(
        lambda _, args: seen.append(args[0].shape[0])
    )
    try:
        patched = patch_model(model, "interleave", guidance=Guidance(skip_last_high=2))
        stage(patched, t2v_experts, empty(), steps=STEPS, end=SPLIT, cfg=CFG)
    finally:
        handle.remove()
    assert sum(seen) == 2 * SPLIT - 2


RECIPES = {
    "all moves": ["merge:4", "full", "reuse", "merge:2+delta", "full+cond", "full", "interleave:2", "full+delta"],
    "reuse": ["full", "reuse", "merge:2", "interleave:3", "merge:2", "full", "reuse", "interleave:2"],
    "two weights": ["full", "merge:2", "reuse:1.72,-0.72", "full", "full", "full", "interleave:2", "reuse:0.5,0.75"],
    "three weights": ["full", "merge:2", "full", "reuse:2.1,-1.4,0.3", "full", "full", "full", "reuse:0.9"],
    "guidance": ["full", "merge:2", "full+delta:1.47,-0.58", "full", "full", "full", "full", "full+delta:1.5,-0.7"],
    "guidance, twice": ["full", "full", "full+delta:1.3,-0.3", "merge:2+delta:1.2,-0.4", *["full"] * 4],
    "guidance, three": ["full", "full", "merge:2", "full+delta:2,-1.3,0.4", *["full"] * 3, "reuse:1.5,-0.5"],
}


@pytest.mark.parametrize("moves", RECIPES.values(), ids=RECIPES)
@pytest.mark.parametrize("kind", ["t2v", "i2v"])
def test_recipe_on_both_models(kind: str, moves: list[str], request: pytest.FixtureRequest) -> None:
    experts = request.getfixturevalue(f"{kind}_experts")
    split = SPLIT if kind == "t2v" else 4
    recipe = Recipe(tuple(moves), high_noise_steps=split)
    high, low = shifted(experts.high, SHIFT), shifted(experts.low, SHIFT)
    conditions = experts.conditions(**image_conditions(experts.pipe)) if kind == "i2v" else None
    latents = two_stages(
        patch_model(high, recipe),
        patch_model(low, recipe, expert="low"),
        experts,
        steps=STEPS,
        split=split,
        cfg=CFG,
        conditions=conditions,
    )
    with halfframe.enabled(experts.pipe, recipe):
        expected = official_latents(experts.pipe, table(high, STEPS), split, cfg=CFG, seed=SEED)
    assert_same(normalised(latents)[0], expected)


def test_recipe_that_leaves_one_model_whole_says_nothing_of_it(t2v_experts: Experts) -> None:
    high, low = shifted(t2v_experts.high, SHIFT), shifted(t2v_experts.low, SHIFT)
    recipe = Recipe((*["merge:2+cond"] * 5, *["full"] * 3), high_noise_steps=SPLIT)
    models = patch_model(high, recipe), patch_model(low, recipe, expert="low")
    two_stages(*models, t2v_experts, steps=STEPS, split=SPLIT)  # a warning would be an error


def test_recipe_of_other_lengths_is_refused(t2v_experts: Experts) -> None:
    model = shifted(t2v_experts.high, SHIFT)
    recipe = Recipe(tuple(RECIPES["reuse"]), high_noise_steps=SPLIT)
    with pytest.raises(halfframe.StrategyError, match="5 steps of 8 for the high-noise model, but its sampler makes 4"):
        stage(patch_model(model, recipe), t2v_experts, empty(), steps=STEPS, end=4)
    low = patch_model(model, recipe, expert="low")
    with pytest.raises(halfframe.StrategyError, match="3 steps of 8 for the low-noise model, but its sampler makes 4"):
        stage(low, t2v_experts, empty(), steps=STEPS, start=4)
    with pytest.raises(halfframe.StrategyError, match="high_noise_steps"):
        stage(patch_model(model, Recipe(("full",) * 8)), t2v_experts, empty(), steps=STEPS, end=4)


def test_recipe_whose_second_model_begins_with_a_reuse_is_refused(t2v_experts: Experts) -> None:
    model = shifted(t2v_experts.low, SHIFT)
    recipe = Recipe((*["full"] * 5, "reuse", "full", "full"), high_noise_steps=SPLIT)
    with pytest.raises(halfframe.StrategyError, match="let the first step of each model be computed"):
        stage(patch_model(model, recipe, expert="low"), t2v_experts, empty(), steps=STEPS, start=SPLIT)


def test_last_steps_of_a_schedule_that_goes_on_elsewhere(t2v_experts: Experts) -> None:
    model = patch_model(shifted(t2v_experts.high), "interleave", guidance=Guidance(skip_last=2))
    with pytest.raises(halfframe.OptionError, match="skip_last_high"):
        stage(model, t2v_experts, empty(), steps=STEPS, end=4)


def test_scale_1_has_nothing_to_skip(t2v_experts: Experts) -> None:
    model = shifted(t2v_experts.high)
    patched = patch_model(model, "interleave", guidance=Guidance(skip_last_high=2))
    with pytest.warns(halfframe.HalfframeWarning, match="no unconditional pass was skipped"):
        latents = stage(patched, t2v_experts, empty(), steps=4, end=2, cfg=1.0)["samples"]
    plain = stage(patch_model(model, "interleave"), t2v_experts, empty(), steps=4, end=2, cfg=1.0)["samples"]
    assert torch.equal(latents, plain)


def test_sampler_that_needs_the_unconditional_prediction(t2v_experts: Experts) -> None:
    model = shifted(t2v_experts.high)
    patched = patch_model(model, "interleave", guidance=Guidance(skip_last_high=2))
    with pytest.warns(halfframe.HalfframeWarning) as warnings:
        latents = stage(patched, t2v_experts, empty(), steps=4, end=2, sampler="euler_cfg_pp")["samples"]
    assert any("cfg_pp" in str(warning.message) for warning in warnings)
    plain = stage(patch_model(model, "interleave"), t2v_experts, empty(), steps=4, end=2, sampler="euler_cfg_pp")
    assert torch.equal(latents, plain["samples"])


def test_other_formulas_are_refused(t2v_experts: Experts, comfy: Any) -> None:
    model = shifted(t2v_experts.high).clone()
    model.set_model_sampler_cfg_function(lambda args: args["uncond"] + 2 * (args["cond"] - args["uncond"]))
    patched = patch_model(model, "interleave", guidance=Guidance(skip_last_high=1, mode="delta"))
    with pytest.raises(halfframe.HalfframeError, match="RescaleCFG"):
        stage(patched, t2v_experts, empty(), steps=4, end=2)
    positive, negative = t2v_experts.conditions()
    nodes = comfy.nodes_custom_sampler
    patched = patch_model(shifted(t2v_experts.high), "interleave", guidance=Guidance(skip_last_high=1))
    (guider,) = call(
        nodes.DualCFGGuider, model=patched, cond1=positive, cond2=positive, negative=negative, cfg_conds=2.0,
        cfg_cond2_negative=3.0,
        **({"style": "regular"} if "style" in nodes.DualCFGGuider.INPUT_TYPES()["required"] else {}),
    )  # fmt: skip
    with pytest.raises(halfframe.HalfframeError, match="DualCFG"):
        guider.sample(
            torch.randn(1, 16, 9, 4, 6),
            empty()["samples"],
            call(nodes.KSamplerSelect, sampler_name="euler")[0],
            table(patched, 4)[:3],
            seed=SEED,
        )


def test_guider_is_left_as_it_was(t2v_experts: Experts, comfy: Any) -> None:
    nodes = comfy.nodes_custom_sampler
    positive, negative = t2v_experts.conditions()
    patched = patch_model(shifted(t2v_experts.high), "interleave", guidance=Guidance(skip_last_high=1))
    (guider,) = call(nodes.CFGGuider, model=patched, positive=positive, negative=negative, cfg=CFG)
    options = guider.model_options
    with torch.inference_mode():
        guider.sample(
            torch.randn(1, 16, 9, 4, 6),
            empty()["samples"],
            call(nodes.KSamplerSelect, sampler_name="euler")[0],
            table(patched, 4)[:3],
            seed=SEED,
        )
    assert guider.cfg == CFG
    assert guider.model_options is options
    assert "halfframe" not in options["transformer_options"]
    assert custom(patched, t2v_experts, empty(), table(patched, 4)[:3])["samples"].isfinite().all()
