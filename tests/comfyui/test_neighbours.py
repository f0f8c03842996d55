"""What other nodes do to a model: LoRA, compilation, weights of another kind, caches."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from halfframe.hosts.comfyui import patch_model

from .experts import (
    Experts,
    assert_same,
    comfy_model,
)
from .graphs import with_lora
from .sampling import call, empty, shifted, stage, two_stages

STEPS, SPLIT = 4, 2
STRATEGIES = ("self-duplicate", "interleave", "merge")


def plain_and_patched(experts: Experts, strategy: str = "interleave", **options: Any) -> tuple[Any, Any]:
    high = shifted(experts.high)
    return high, patch_model(high, strategy, **options)


@pytest.mark.parametrize("strategy", [*STRATEGIES, None])
@pytest.mark.filterwarnings("ignore:halfframe. nothing was skipped")
def test_the_model_itself_stays_as_it_was(t2v_experts: Experts, strategy: Any) -> None:
    high, low = shifted(t2v_experts.high), shifted(t2v_experts.low)
    before = two_stages(high, low, t2v_experts, steps=STEPS, split=SPLIT)
    network = high.model.diffusion_model
    own = {name: dict(vars(module)) for name, module in network.named_modules()}
    patched = patch_model(high, strategy)
    wrappers, options = dict(high.wrappers), dict(high.model_options)
    assert patched is not high
    two_stages(patched, low, t2v_experts, steps=STEPS, split=SPLIT)
    assert torch.equal(two_stages(high, low, t2v_experts, steps=STEPS, split=SPLIT), before)
    assert (high.wrappers, high.model_options) == (wrappers, options)
    for name, module in network.named_modules():
        assert vars(module).keys() == own[name].keys(), name
    again = two_stages(patched, low, t2v_experts, steps=STEPS, split=SPLIT)
    assert torch.equal(again, before) == (strategy is None)


@pytest.mark.parametrize("batched", [True, False])
def test_conditional_and_unconditional_together_or_apart(
    t2v_experts: Experts, monkeypatch: pytest.MonkeyPatch, batched: bool
) -> None:
    high, patched = plain_and_patched(t2v_experts)
    seen: list[int] = []
    handle = high.model.diffusion_model.patch_embedding.register_forward_pre_hook(
        lambda _, args: seen.append(args[0].shape[0])
    )
    expected = stage(patched, t2v_experts, empty(), steps=STEPS, end=SPLIT)["samples"]
    usual = seen.copy()
    # ComfyUI batches the two where the memory for twice the input is free.
    needed = 0 if batched else 1e15
    monkeypatch.setattr(high.model, "memory_required", lambda *_, **__: needed)
    seen.clear()
    latents = stage(patched, t2v_experts, empty(), steps=STEPS, end=SPLIT)["samples"]
    handle.remove()
    assert usual
    assert seen == ([2] * SPLIT if batched else [1] * 2 * SPLIT)
    assert_same(latents, expected)


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_lora_before_and_after(t2v_experts: Experts, strategy: str) -> None:
    high, low = shifted(t2v_experts.high), shifted(t2v_experts.low)
    before = patch_model(with_lora(high, 1.0), strategy)
    after = with_lora(patch_model(high, strategy), 1.0)
    latents = two_stages(before, low, t2v_experts, steps=STEPS, split=SPLIT)
    assert torch.equal(two_stages(after, low, t2v_experts, steps=STEPS, split=SPLIT), latents)
    without = two_stages(patch_model(high, strategy), low, t2v_experts, steps=STEPS, split=SPLIT)
    assert not torch.allclose(latents, without, atol=1e-3)


def test_used_twice_the_later_settings_hold(t2v_experts: Experts) -> None:
    high, first = plain_and_patched(t2v_experts, "self-duplicate")
    twice = patch_model(first, "interleave", stride=3)
    latents = stage(twice, t2v_experts, empty(), steps=STEPS, end=SPLIT)["samples"]
    once = patch_model(high, "interleave", stride=3)
    assert torch.equal(latents, stage(once, t2v_experts, empty(), steps=STEPS, end=SPLIT)["samples"])
    assert {len(w["halfframe"]) for w in twice.wrappers.values()} == {1}


@pytest.mark.parametrize("strategy", ["self-duplicate", "merge"])
def test_compiled(t2v_experts: Experts, comfy: Any, strategy: str) -> None:
    """Of the backends, "eager" traces and runs what it traced, without a compiler; the tracing is the trap."""
    high, patched = plain_and_patched(t2v_experts, strategy)
    expected = stage(patched, t2v_experts, empty(), steps=STEPS, end=SPLIT)["samples"]
    torch._dynamo.reset()
    from comfy_api.torch_helpers import set_torch_compile_wrapper

    for model in (patched, high):
        compiled = model.clone()
        set_torch_compile_wrapper(compiled, backend="eager")
        if model is high:
            compiled = patch_model(compiled, strategy)
        latents = stage(compiled, t2v_experts, empty(), steps=STEPS, end=SPLIT)["samples"]
        assert_same(latents, expected)
        assert_same(stage(compiled, t2v_experts, empty(), steps=STEPS, end=SPLIT)["samples"], expected)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float8_e4m3fn], ids=str)
@pytest.mark.parametrize("strategy", ["self-duplicate", "merge"])
def test_other_weights(t2v_experts: Experts, dtype: torch.dtype, strategy: str) -> None:
    """Close to what full precision gives; the fractional positions of merge have no place in half precision."""
    high = t2v_experts.high
    model = shifted(comfy_model(t2v_experts.pipe.high_noise_model, dtype))
    assert model.model.diffusion_model.blocks[0].self_attn.q.weight.dtype == dtype
    latents = stage(patch_model(model, strategy), t2v_experts, empty(), steps=STEPS, end=SPLIT)["samples"]
    expected = stage(patch_model(shifted(high), strategy), t2v_experts, empty(), steps=STEPS, end=SPLIT)["samples"]
    plain = stage(shifted(high), t2v_experts, empty(), steps=STEPS, end=SPLIT)["samples"]
    assert (latents - expected).norm() < 0.3 * (plain - expected).norm()


def test_lazycache(t2v_experts: Experts, comfy: Any) -> None:
    """It skips whole steps, of all frames, so it may stand beside maps that change."""
    high = shifted(t2v_experts.high)
    settings = {"reuse_threshold": 0.0, "start_percent": 0.1, "end_percent": 0.95, "verbose": False}
    (cached,) = call(comfy.nodes_easycache.LazyCacheNode, model=high, **settings)
    latents = stage(patch_model(cached, "interleave"), t2v_experts, empty(), steps=STEPS, end=SPLIT)["samples"]
    expected = stage(patch_model(high, "interleave"), t2v_experts, empty(), steps=STEPS, end=SPLIT)["samples"]
    assert torch.equal(latents, expected)
    (eager,) = call(comfy.nodes_easycache.LazyCacheNode, model=high, **{**settings, "reuse_threshold": 1e9})
    skipped = stage(patch_model(eager, "interleave"), t2v_experts, empty(), steps=8, end=5)["samples"]
    assert skipped.isfinite().all()
    assert not torch.allclose(
        skipped, stage(patch_model(high, "interleave"), t2v_experts, empty(), steps=8, end=5)["samples"], atol=1e-3
    )
