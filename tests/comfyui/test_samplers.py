"""Samplers and stages: self-duplicate against a plain run of half the frames, and clips that must be whole."""

from __future__ import annotations

from typing import Any
from unittest import mock

import pytest
import torch
from torch import Tensor

import halfframe
from halfframe.hosts.comfyui import patch_model

from .experts import LATENT_FRAMES, Experts, assert_same
from .sampling import SEED, custom, empty, shifted, stage, table, two_stages

STEPS, SPLIT = 6, 3
HALF = (LATENT_FRAMES + 1) // 2
DETERMINISTIC = ("euler", "uni_pc", "dpmpp_2m", "heun", "res_multistep", "dpm_2", "lms", "deis", "ddim")
STOCHASTIC = ("euler_ancestral", "dpm_2_ancestral", "dpmpp_sde", "dpmpp_2m_sde", "lcm", "res_multistep_ancestral")


def noise(frames: int = LATENT_FRAMES) -> Tensor:
    """What ComfyUI draws for `SEED`."""
    return torch.randn(empty(frames=frames)["samples"].shape, generator=torch.Generator().manual_seed(SEED))


def half_run(high: Any, low: Any, experts: Experts, sampler: str, steps: int = STEPS, split: int = SPLIT) -> Tensor:
    """The source's scheme by ComfyUI's own nodes: a clip of half the frames, repeated, then the low-noise model."""
    sigmas = table(high, steps)
    short = custom(high, experts, empty(frames=HALF), sigmas[: split + 1], sampler=sampler, noise=noise()[:, :, ::2])
    doubled = short["samples"].repeat_interleave(2, dim=2)[:, :, :LATENT_FRAMES]
    return custom(low, experts, {"samples": doubled}, sigmas[split:], sampler=sampler, seed=None)["samples"]


@pytest.mark.parametrize("sampler", DETERMINISTIC)
def test_self_duplicate_is_a_run_of_half_the_frames(t2v_experts: Experts, sampler: str) -> None:
    high, low = shifted(t2v_experts.high), shifted(t2v_experts.low)
    sigmas = table(high, STEPS)
    patched = patch_model(high, "self-duplicate")
    middle = custom(patched, t2v_experts, empty(), sigmas[: SPLIT + 1], sampler=sampler)
    latents = custom(low, t2v_experts, middle, sigmas[SPLIT:], sampler=sampler, seed=None)["samples"]
    assert_same(latents, half_run(high, low, t2v_experts, sampler))


def test_sampler_with_noise_of_its_own_follows_the_kept_frames(t2v_experts: Experts, comfy: Any) -> None:
    """What the expert sees is a run of half the frames whose noise is the kept frames' part of each draw."""
    high = shifted(t2v_experts.high)
    sigmas = table(high, STEPS)[: SPLIT + 1]
    draws = torch.Generator().manual_seed(3)
    series = [torch.randn(noise().shape, generator=draws) for _ in range(SPLIT)]

    def latents(model: Any, kept: slice) -> Tensor:
        rest = iter(series)
        name = "comfy.k_diffusion.sampling.default_noise_sampler"
        with mock.patch(name, return_value=lambda *_: next(rest)[:, :, kept]):
            start = noise()[:, :, kept]
            empty_clip = empty(frames=start.shape[2])
            return custom(model, t2v_experts, empty_clip, sigmas, sampler="euler_ancestral", noise=start)["samples"]

    halved = latents(patch_model(high, "self-duplicate"), slice(None))
    plain = latents(high, slice(None, None, 2))
    assert_same(halved, plain.repeat_interleave(2, dim=2)[:, :, :LATENT_FRAMES])


@pytest.mark.parametrize("strategy", ["self-duplicate", "interleave", "merge"])
@pytest.mark.parametrize("sampler", STOCHASTIC)
def test_sampler_with_noise_of_its_own_makes_a_whole_clip(t2v_experts: Experts, sampler: str, strategy: str) -> None:
    high, low = shifted(t2v_experts.high), shifted(t2v_experts.low)
    latents = two_stages(patch_model(high, strategy), low, t2v_experts, steps=STEPS, split=SPLIT, sampler=sampler)
    plain = two_stages(high, low, t2v_experts, steps=STEPS, split=SPLIT, sampler=sampler)
    assert latents.isfinite().all()
    assert not torch.allclose(latents, plain, atol=1e-2)
    # Of the same size as a plain clip's values, frame by frame: no frame was left as noise.
    assert (latents.std((0, 1, 3, 4)) / plain.std((0, 1, 3, 4))).log().abs().max() < 0.5


@pytest.mark.parametrize("strategy", ["self-duplicate", "interpolate", "interleave", "merge"])
def test_every_way_to_split_gives_the_same(t2v_experts: Experts, strategy: str) -> None:
    high, low = shifted(t2v_experts.high), shifted(t2v_experts.low)
    sigmas = table(high, STEPS)
    patched = patch_model(high, strategy)
    two = two_stages(patched, low, t2v_experts, steps=STEPS, split=SPLIT)
    middle = custom(patched, t2v_experts, empty(), sigmas[: SPLIT + 1])
    split = custom(low, t2v_experts, middle, sigmas[SPLIT:], seed=None)["samples"]
    assert torch.equal(split, two)


@pytest.mark.parametrize("strategy", ["self-duplicate", "interpolate"])
def test_three_stages_are_two(t2v_experts: Experts, strategy: str) -> None:
    """Of strategies that compute the same frames at every step; others count the steps of each sampler anew."""
    high, low = shifted(t2v_experts.high), shifted(t2v_experts.low)
    patched = patch_model(high, strategy)
    first = stage(patched, t2v_experts, empty(), steps=STEPS, end=1)
    second = stage(patched, t2v_experts, first, steps=STEPS, start=1, end=SPLIT)
    three = stage(low, t2v_experts, second, steps=STEPS, start=SPLIT)["samples"]
    assert_same(three, two_stages(patched, low, t2v_experts, steps=STEPS, split=SPLIT))


def test_interleave_in_three_stages(t2v_experts: Experts) -> None:
    high = shifted(t2v_experts.high)
    patched = patch_model(high, "interleave")
    first = stage(patched, t2v_experts, empty(), steps=STEPS, end=1)
    second = stage(patched, t2v_experts, first, steps=STEPS, start=1, end=SPLIT)["samples"]
    assert second.isfinite().all()


def test_a_sampler_over_the_whole_schedule_leaves_low_noise_steps_whole(t2v_experts: Experts) -> None:
    model = shifted(t2v_experts.high)
    counts = frames_seen(model, lambda: stage(patch_model(model, "interpolate"), t2v_experts, empty(), steps=STEPS))
    high = sum(float(sigma) >= 0.85 for sigma in table(model, STEPS)[:-1])
    assert 0 < high < STEPS
    assert counts == [HALF] * high + [LATENT_FRAMES] * (STEPS - high)
    asked = patch_model(model, "interpolate", until="end")
    assert frames_seen(model, lambda: stage(asked, t2v_experts, empty(), steps=STEPS)) == [HALF] * STEPS


def test_the_low_noise_model_by_mistake(t2v_experts: Experts) -> None:
    """Shift 8 and 20 steps split in the middle: two of the low-noise model's steps are above sigma 0.85."""
    high, low = shifted(t2v_experts.high, 8.0), shifted(t2v_experts.low, 8.0)
    assert float(table(low, 20)[11]) > 0.85
    with pytest.warns(halfframe.HalfframeWarning, match="high-noise model"):
        latents = two_stages(high, patch_model(low, "interleave"), t2v_experts, steps=20, split=10)
    assert torch.equal(latents, two_stages(high, low, t2v_experts, steps=20, split=10))


def test_percent_of_the_schedule(t2v_experts: Experts) -> None:
    model = shifted(t2v_experts.high)
    patched = patch_model(model, "interpolate", start_percent=0.2, end_percent=0.4)
    counts = frames_seen(model, lambda: stage(patched, t2v_experts, empty(), steps=10, end=5))
    assert counts == [LATENT_FRAMES] * 2 + [HALF] * 2 + [LATENT_FRAMES]


def frames_seen(model: Any, run: Any) -> list[int]:
    """Latent frames that the diffusion model of `model` is given at each step, while `run` runs."""
    seen: list[int] = []
    handle = model.model.diffusion_model.patch_embedding.register_forward_pre_hook(
        lambda _, args: seen.append(args[0].shape[2])
    )
    try:
        run()
    finally:
        handle.remove()
    return seen
