"""Frames of other numbers and kinds: windows, first and last frame, batches, long clips."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

import halfframe
from halfframe.hosts.comfyui import patch_model

from .experts import (
    LATENT_FRAMES,
    Experts,
    assert_same,
    image_conditions,
    normalised,
    official_latents,
)
from .sampling import SEED, call, custom, empty, shifted, stage, table, two_stages
from .test_neighbours import plain_and_patched
from .test_runs import Calls

STEPS, SPLIT = 4, 2


class Windows:
    """Context windows as the node *WAN Context Windows* sets them, over latent frames."""

    def __init__(self, comfy: Any, length: int, overlap: int) -> None:
        self._node = comfy.nodes_context_windows.ContextWindowsManualNode
        self._settings: dict[str, Any] = {
            "context_length": length,
            "context_overlap": overlap,
            "context_schedule": "standard_static",
            "context_stride": 1,
            "closed_loop": False,
            "fuse_method": "pyramid",
            "dim": 2,
        }
        known = self._node.INPUT_TYPES()["required"]
        newer = {"freenoise": False, "causal_window_fix": False}
        self._settings |= {name: value for name, value in newer.items() if name in known}

    def on(self, model: Any) -> Any:
        return call(self._node, model=model, **self._settings)[0]


def windows_of_half(comfy: Any, model: Any) -> Any:
    return Windows(comfy, 3, 1).on(model)


@pytest.mark.parametrize("strategy", ["interleave", "interpolate", "merge", "self-duplicate"])
def test_context_windows(t2v_experts: Experts, comfy: Any, strategy: str) -> None:
    high, patched = plain_and_patched(t2v_experts, strategy)
    windows = Windows(comfy, 5, 1)
    seen: list[int] = []
    handle = high.model.diffusion_model.patch_embedding.register_forward_pre_hook(
        lambda _, args: seen.append(args[0].shape[2])
    )
    latents = stage(windows.on(patched), t2v_experts, empty(), steps=STEPS, end=SPLIT)["samples"]
    handle.remove()
    assert set(seen) == {3}
    assert torch.equal(
        stage(patch_model(windows.on(high), strategy), t2v_experts, empty(), steps=STEPS, end=SPLIT)["samples"], latents
    )
    whole = stage(patched, t2v_experts, empty(), steps=STEPS, end=SPLIT)["samples"]
    assert not torch.allclose(latents, whole, atol=1e-3)
    if strategy == "self-duplicate":
        short = custom(
            windows_of_half(comfy, high),
            t2v_experts,
            empty(frames=5),
            table(high, STEPS)[: SPLIT + 1],
            noise=torch.randn(1, 16, LATENT_FRAMES, 4, 6, generator=torch.Generator().manual_seed(SEED))[:, :, ::2],
        )["samples"]
        assert short.isfinite().all()


def test_context_windows_that_begin_between_two_computed_frames(t2v_experts: Experts, comfy: Any) -> None:
    _, patched = plain_and_patched(t2v_experts, "self-duplicate")
    model = Windows(comfy, 4, 1).on(patched)
    with pytest.raises(halfframe.HalfframeError, match="Context Windows"):
        stage(model, t2v_experts, empty(), steps=STEPS, end=SPLIT)


def test_first_and_last_frame(i2v_experts: Experts) -> None:
    """The last frame has an image of its own and is computed at every step, whatever the strategy says."""
    high, low = shifted(i2v_experts.high), shifted(i2v_experts.low)
    conditions = i2v_experts.conditions(**image_conditions(i2v_experts.pipe, 29, last=True))
    calls = Calls()
    patched = patch_model(high, "interleave", plugins=[calls])
    latents = two_stages(patched, low, i2v_experts, steps=8, split=4, latent=empty(frames=8), conditions=conditions)
    kept = [call.frame_map.kept for call in calls.seen if call.number == 0]
    assert kept == [(0, 2, 4, 6, 7), (0, 1, 3, 5, 7)] * 2
    assert latents.isfinite().all()
    # On the last frame the velocity is the expert's own: a plain run of those frames at these positions would give it.
    merged = two_stages(
        patch_model(high, "merge"), low, i2v_experts, steps=8, split=4, latent=empty(frames=8), conditions=conditions
    )
    assert torch.equal(merged, latents)  # no expert knows a mean of images


def test_rope_options_of_another_node(t2v_experts: Experts) -> None:
    """A node that stretches the time axis stretches it for the computed frames too."""
    high = shifted(t2v_experts.high).clone()
    if not hasattr(high, "set_model_rope_options"):
        pytest.skip("this ComfyUI has no such node")
    stretched = high.clone()
    stretched.set_model_rope_options(1.0, 0.0, 1.0, 0.0, 2.0, 3.0)
    seen: list[Tensor] = []
    embedder = high.model.diffusion_model.rope_embedder
    handle = embedder.register_forward_hook(lambda _, args, out: seen.append(out))
    try:
        stage(patch_model(stretched, "interpolate"), t2v_experts, empty(), steps=STEPS, end=1)
        stage(stretched, t2v_experts, empty(), steps=STEPS, end=1)
    finally:
        handle.remove()
    rotations = [
        out.reshape(-1, LATENT_FRAMES if out.numel() > seen[0].numel() else 5, 6, *out.shape[-3:]) for out in seen
    ]
    torch.testing.assert_close(rotations[0][:, :], rotations[-1][:, ::2])


def test_short_noise_without_a_seed(t2v_experts: Experts) -> None:
    _, patched = plain_and_patched(t2v_experts, "self-duplicate", noise="short")
    sigmas = table(patched, STEPS)[: SPLIT + 1]
    with pytest.raises(halfframe.OptionError, match="seed"):
        custom(patched, t2v_experts, empty(), sigmas, noise=torch.randn(1, 16, 9, 4, 6), seed=None)


def test_more_frames_than_the_official_loop_needs_no_more(t2v_experts: Experts) -> None:
    """81 video frames, as most workflows have."""
    high, low = shifted(t2v_experts.high), shifted(t2v_experts.low)
    latents = two_stages(patch_model(high, "merge"), low, t2v_experts, steps=4, split=2, latent=empty(frames=21))
    with halfframe.enabled(t2v_experts.pipe, "merge"):
        expected = official_latents(t2v_experts.pipe, table(high, 4), 2, cfg=3.5, seed=SEED, frames=81)
    assert_same(normalised(latents)[0], expected)


def test_several_clips_in_a_batch(t2v_experts: Experts) -> None:
    _, patched = plain_and_patched(t2v_experts)
    one = stage(patched, t2v_experts, empty(), steps=STEPS, end=SPLIT)["samples"]
    two = stage(patched, t2v_experts, empty(batch=2), steps=STEPS, end=SPLIT)["samples"]
    assert two.shape[0] == 2
    assert_same(two[:1], one)
    assert not torch.allclose(two[1:], one, atol=1e-2)
