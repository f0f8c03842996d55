"""What is refused, and that each message names what to change."""

from __future__ import annotations

from typing import Any, ClassVar

import pytest
import torch

import halfframe
from halfframe.hosts.comfyui import patch_model

from .experts import Experts, image_conditions
from .sampling import call, custom, empty, shifted, stage, table, two_stages

STEPS, SPLIT = 4, 2


def other_model(comfy: Any, experts: Experts, name: str, **weights: tuple[int, ...]) -> Any:
    """What ComfyUI takes for another model of the family, by the weights that tell it apart."""
    state = {key: value.clone() for key, value in experts.pipe.high_noise_model.state_dict().items()}
    state |= {key.replace("__", "."): torch.zeros(shape) for key, shape in weights.items()}
    if name == "WAN22":  # 5B: 48 channels of latents
        state["head.head.weight"] = torch.zeros(4 * 48, 128)
        state["head.head.bias"] = torch.zeros(4 * 48)
        state["patch_embedding.weight"] = torch.zeros(128, 48, 1, 2, 2)
    if name == "Fun Control":
        state["patch_embedding.weight"] = torch.zeros(128, 48, 1, 2, 2)
        state["img_emb.proj.0.bias"] = torch.zeros(1280)
    return comfy.sd.load_diffusion_model_state_dict(state)


@pytest.mark.parametrize(
    ("name", "weights", "message"),
    [
        ("WAN22", {}, "it is a WAN22.*high_noise_14B"),
        (
            "WAN21_Vace",
            {"vace_patch_embedding__weight": (128, 96, 1, 2, 2), "vace_blocks__0__norm3__bias": (128,)},
            "it is a WAN21_Vace",
        ),
        (
            "WAN21_Camera",
            {"control_adapter__conv__weight": (128, 1536, 2, 2), "patch_embedding__weight": (128, 36, 1, 2, 2)},
            "it is a WAN21_Camera",
        ),
        ("Fun Control", {}, "48 channels"),
        ("ref_conv", {"ref_conv__weight": (128, 16, 2, 2)}, "reference image"),
    ],
)
def test_other_models(
    t2v_experts: Experts, comfy: Any, name: str, weights: dict[str, tuple[int, ...]], message: str
) -> None:
    model = other_model(comfy, t2v_experts, name, **weights)
    if name.startswith("WAN"):
        assert type(model.model).__name__ == name
    with pytest.raises(halfframe.UnsupportedPipelineError, match=message):
        patch_model(model)


def test_what_is_no_model() -> None:
    with pytest.raises(halfframe.UnsupportedPipelineError, match="it is a NoneType"):
        patch_model(object())


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"start_percent": -0.1}, "start_percent must be a number in 0..1, got -0.1"),
        ({"end_percent": "1"}, "end_percent must be a number in 0..1, got '1'"),
        ({"start_percent": 0.6, "end_percent": 0.5}, "start_percent must be less than end_percent"),
        ({"expert": "middle"}, "expert must be 'high' or 'low'"),
        ({"strategy": "merge", "strides": 3}, "strides"),
        ({"guidance": 5}, "guidance must be a halfframe.Guidance"),
    ],
)
def test_options(t2v_experts: Experts, options: dict[str, Any], message: str) -> None:
    with pytest.raises(halfframe.OptionError, match=message):
        patch_model(t2v_experts.high, **options)


def test_unknown_strategy(t2v_experts: Experts) -> None:
    with pytest.raises(halfframe.StrategyError, match="Did you mean 'interleave'"):
        patch_model(t2v_experts.high, "interleaved")


def test_easycache(t2v_experts: Experts, comfy: Any) -> None:
    """Maps that change are refused; the same frames at every step of the sampler are as a shorter clip to it."""
    high = shifted(t2v_experts.high)
    settings = {"reuse_threshold": 0.0, "start_percent": 0.1, "end_percent": 0.95, "verbose": False}
    (cached,) = call(comfy.nodes_easycache.EasyCacheNode, model=high, **settings)
    for strategy in ("interleave", "merge"):
        with pytest.raises(halfframe.HalfframeError, match="Remove the EasyCache node"):
            stage(patch_model(cached, strategy), t2v_experts, empty(), steps=STEPS, end=SPLIT)
    with pytest.raises(halfframe.HalfframeError, match="EasyCache"):
        stage(patch_model(cached, "interpolate", until=1), t2v_experts, empty(), steps=STEPS, end=SPLIT)
    for strategy in ("interpolate", "self-duplicate"):
        latents = stage(patch_model(cached, strategy), t2v_experts, empty(), steps=STEPS, end=SPLIT)["samples"]
        plain = stage(patch_model(high, strategy), t2v_experts, empty(), steps=STEPS, end=SPLIT)["samples"]
        assert torch.equal(latents, plain)  # a threshold of 0 reuses nothing


def test_conditions_that_go_with_the_frames(t2v_experts: Experts) -> None:
    patched = patch_model(shifted(t2v_experts.high))
    conditions = t2v_experts.conditions(time_dim_concat=torch.zeros(1, 16, 1, 4, 6))
    with pytest.raises(halfframe.HalfframeError, match=r"time_dim_concat.*Remove"):
        stage(patched, t2v_experts, empty(), steps=STEPS, end=SPLIT, conditions=conditions)


def test_control_net(t2v_experts: Experts) -> None:
    patched = patch_model(shifted(t2v_experts.high))

    class Control:
        extra_hooks = None
        previous_controlnet = None
        multigpu_clones: ClassVar[dict[Any, Any]] = {}

        def get_models(self) -> list[Any]:
            return []

        def get_extra_hooks(self) -> list[Any]:
            return []

        def inference_memory_requirements(self, _: Any) -> int:
            return 0

        def get_control(self, *_: Any) -> dict[str, Any]:
            return {}

        def pre_run(self, *_: Any) -> None: ...

        def cleanup(self) -> None: ...

    conditions = t2v_experts.conditions(control=Control())
    with pytest.raises(halfframe.HalfframeError, match="a ControlNet"):
        stage(patched, t2v_experts, empty(), steps=STEPS, end=SPLIT, conditions=conditions)


def test_self_duplicate_needs_an_empty_clip(t2v_experts: Experts) -> None:
    high = shifted(t2v_experts.high)
    video = {"samples": torch.randn(1, 16, 9, 4, 6)}
    with pytest.raises(halfframe.HalfframeError, match="Connect an empty latent"):
        stage(patch_model(high, "self-duplicate"), t2v_experts, video, steps=STEPS, end=SPLIT)
    masked = {**empty(), "noise_mask": torch.ones(1, 1, 9, 32, 48)}
    with pytest.raises(halfframe.HalfframeError, match="with a mask"):
        stage(patch_model(high, "self-duplicate"), t2v_experts, masked, steps=STEPS, end=SPLIT)
    for strategy in ("interleave", "merge"):  # every frame has its own noise, so a clip to start from is as good
        assert (
            stage(patch_model(high, strategy), t2v_experts, video, steps=STEPS, end=SPLIT)["samples"].isfinite().all()
        )
        assert (
            stage(patch_model(high, strategy), t2v_experts, masked, steps=STEPS, end=SPLIT)["samples"].isfinite().all()
        )


def test_self_duplicate_in_one_sampler(t2v_experts: Experts) -> None:
    patched = patch_model(shifted(t2v_experts.high), "self-duplicate")
    with pytest.raises(halfframe.HalfframeError, match=r"Use two samplers .*SplitSigmas"):
        stage(patched, t2v_experts, empty(), steps=STEPS)


def test_images_where_there_is_no_video(t2v_experts: Experts, comfy: Any) -> None:
    patched = patch_model(shifted(t2v_experts.high))
    sigmas = table(patched, STEPS)[:1]
    with pytest.raises(halfframe.HalfframeError, match="1 sigmas"):
        custom(patched, t2v_experts, empty(), sigmas)


def test_a_failure_leaves_the_model_usable(t2v_experts: Experts) -> None:
    """After a refusal in mid-run, plain and patched runs are what they were."""
    high, low = shifted(t2v_experts.high), shifted(t2v_experts.low)
    patched = patch_model(high, "merge")
    expected = two_stages(patched, low, t2v_experts, steps=STEPS, split=SPLIT)
    conditions = t2v_experts.conditions(time_dim_concat=torch.zeros(1, 16, 1, 4, 6))
    with pytest.raises(halfframe.HalfframeError):
        stage(patched, t2v_experts, empty(), steps=STEPS, end=SPLIT, conditions=conditions)
    assert torch.equal(two_stages(patched, low, t2v_experts, steps=STEPS, split=SPLIT), expected)


def test_image_to_video_without_an_image(i2v_experts: Experts) -> None:
    """Frames have no image then, and ComfyUI gives the model zeros, which are cut beside them."""
    high, low = shifted(i2v_experts.high), shifted(i2v_experts.low)
    latents = two_stages(patch_model(high, "interleave"), low, i2v_experts, steps=STEPS, split=SPLIT)
    assert latents.isfinite().all()


def test_a_frame_in_the_middle_with_an_image(i2v_experts: Experts) -> None:
    conditions = image_conditions(i2v_experts.pipe)
    conditions["concat_mask"][:, :, 3] = 0
    seen: list[Any] = []

    class See:
        @halfframe.hookimpl
        def halfframe_expert_call(self, call: halfframe.ExpertCall) -> None:
            assert call.frame_map is not None
            seen.append(call.frame_map.kept)

    patched = patch_model(shifted(i2v_experts.high), "interpolate", plugins=[See()])
    given = i2v_experts.conditions(**conditions)
    stage(patched, i2v_experts, empty(), steps=STEPS, end=SPLIT, conditions=given)
    assert set(seen) == {(0, 2, 3, 4, 6, 8)}
