"""Every strategy in ComfyUI against the same one in the official host: same weights, noise and sigmas."""

from __future__ import annotations

from typing import Any

import pytest
import torch

import halfframe
from halfframe.hosts.comfyui import patch_model

from .experts import FRAMES, Experts, assert_same, image_conditions, normalised, official_latents
from .sampling import SEED, empty, shifted, table, two_stages

# The split that the official boundaries make of this schedule: 0.875 and 0.9.
STEPS, SHIFT, SPLIT = 8, 8.0, {"t2v": 5, "i2v": 4}

STRATEGIES: list[tuple[str | None, dict[str, Any]]] = [
    (None, {}),
    ("self-duplicate", {}),
    ("self-duplicate", {"noise": "short"}),
    ("previous-odd", {}),
    ("own-noise", {}),
    ("interpolate", {}),
    ("interleave", {}),
    ("interleave", {"stride": 3}),
    ("interleave", {"positions": "contiguous"}),
    ("interleave", {"full_start": 1, "full_end": 1}),
    ("merge", {}),
    ("merge", {"stride": 3}),
    ("merge", {"until": 2}),
]


def both(experts: Experts, kind: str, strategy: Any, *, frames: int = FRAMES, cfg: float = 3.5, **options: Any) -> Any:
    """``(ComfyUI's latents, the official host's)`` of a clip with `strategy` on."""
    high, low = shifted(experts.high, SHIFT), shifted(experts.low, SHIFT)
    split = SPLIT[kind]
    conditions = experts.conditions(**image_conditions(experts.pipe, frames)) if kind == "i2v" else None
    latents = two_stages(
        patch_model(high, strategy, **options),
        low,
        experts,
        steps=STEPS,
        split=split,
        cfg=cfg,
        latent=empty(frames=(frames - 1) // 4 + 1),
        conditions=conditions,
    )
    with halfframe.enabled(experts.pipe, strategy, **options):
        expected = official_latents(experts.pipe, table(high, STEPS), split, cfg=cfg, seed=SEED, frames=frames)
    return normalised(latents)[0], expected


@pytest.mark.filterwarnings("ignore:halfframe. nothing was skipped")
@pytest.mark.parametrize(("strategy", "options"), STRATEGIES, ids=lambda value: str(value))
@pytest.mark.parametrize("kind", ["t2v", "i2v"])
def test_strategy(kind: str, strategy: Any, options: dict[str, Any], request: pytest.FixtureRequest) -> None:
    experts = request.getfixturevalue(f"{kind}_experts")
    assert_same(*both(experts, kind, strategy, **options))


@pytest.mark.parametrize("strategy", ["self-duplicate", "merge", "interleave"])
@pytest.mark.parametrize("frames", [29, 5])
def test_even_and_small_numbers_of_frames(t2v_experts: Experts, strategy: str, frames: int) -> None:
    assert_same(*both(t2v_experts, "t2v", strategy, frames=frames))


def test_strategies_make_different_clips(t2v_experts: Experts) -> None:
    clips = [both(t2v_experts, "t2v", name)[0] for name in ("self-duplicate", "interpolate", "interleave", "merge")]
    for index, clip in enumerate(clips):
        assert not any(torch.allclose(clip, other, atol=1e-3) for other in clips[:index])


def test_a_clip_of_one_frame_is_a_plain_one(t2v_experts: Experts) -> None:
    high, low = shifted(t2v_experts.high), shifted(t2v_experts.low)
    with pytest.warns(halfframe.HalfframeWarning, match="1 latent frame"):
        latents = two_stages(patch_model(high), low, t2v_experts, steps=4, split=2, latent=empty(frames=1))
    assert torch.equal(latents, two_stages(high, low, t2v_experts, steps=4, split=2, latent=empty(frames=1)))
