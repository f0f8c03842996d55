"""The official, unmodified ``WanI2V.generate``: the conditioning follows the kept frames."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

import halfframe
from halfframe.testing import import_wan

from .reference import half_frame_latents

PROMPT = "the ball rolls on"
IMAGE = np.random.default_rng(0).integers(0, 255, (32, 48, 3), dtype=np.uint8)
ARGS: dict[str, Any] = {"frame_num": 17, "sampling_steps": 8, "shift": 5.0, "seed": 7, "guide_scale": (3.5, 3.5)}


def generate(pipe: Any, **changes: Any) -> Tensor:
    return pipe.generate(PROMPT, IMAGE, max_area=32 * 48, offload_model=False, **{**ARGS, **changes})


def condition(pipe: Any, frame_num: int) -> Tensor:
    """4 mask and 16 VAE channels ``(20, F, h, w)``: the image, then nothing; written out for the reference loop."""
    image = torch.from_numpy(IMAGE).permute(2, 0, 1).float() / 255 * 2 - 1
    total = (frame_num - 1) // 4 + 1
    clip = torch.cat([image[:, None], torch.zeros(3, frame_num - 1, 32, 48)], dim=1)
    mask = torch.zeros(4, total, 4, 6)
    mask[:, 0] = 1
    return torch.cat([mask, pipe.vae.encode([clip])[0]])


@pytest.mark.parametrize("frame_num", [17, 21])
@pytest.mark.parametrize("solver", ["unipc", "dpm++"])
@pytest.mark.parametrize("noise", ["full", "short"])
@pytest.mark.parametrize("half", [True, False])
def test_video_is_that_of_the_reference_loop(i2v: Any, frame_num: int, solver: str, noise: Any, half: bool) -> None:
    changes: dict[str, Any] = {"frame_num": frame_num, "sample_solver": solver}
    with torch.no_grad():
        latents = half_frame_latents(
            i2v,
            import_wan("image2video"),
            PROMPT,
            size=(48, 32),
            condition=condition(i2v, frame_num),
            half=half,
            short_noise=half and noise == "short",
            **{**ARGS, **changes},
        )
        expected = i2v.vae.decode([latents])[0]
    if half:
        with halfframe.enabled(i2v, "self-duplicate", noise=noise):
            video = generate(i2v, **changes)
    else:
        video = generate(i2v, **changes)
    assert video.shape == (3, frame_num, 32, 48)
    torch.testing.assert_close(video, expected, rtol=0, atol=2e-6)


def test_guidance_at_every_second_step(i2v: Any) -> None:
    with torch.no_grad():
        latents = half_frame_latents(
            i2v, import_wan("image2video"), PROMPT, size=(48, 32), condition=condition(i2v, 17), every=2, **ARGS
        )
        expected = i2v.vae.decode([latents])[0]
    with halfframe.enabled(i2v, "self-duplicate", guidance=halfframe.Guidance(every=2)) as run:
        torch.testing.assert_close(generate(i2v), expected, rtol=0, atol=1e-3)
    assert run.report is not None
    assert (run.report.high.passes, run.report.low.passes) == (5, 8)  # 3 and 5 steps


def test_conditioning_follows_the_kept_frames(i2v: Any) -> None:
    seen: dict[str, set[Any]] = {"high": set(), "low": set()}
    whole = condition(i2v, 17)
    for name, model in (("high", i2v.high_noise_model), ("low", i2v.low_noise_model)):

        def look(_: Any, args: Any, kwargs: Any, name: str = name) -> None:
            [y] = kwargs["y"]
            kept = whole[:, ::2] if name == "high" else whole
            seen[name].add((tuple(args[0][0].shape), tuple(y.shape), kwargs["seq_len"], torch.equal(y, kept)))

        model.register_forward_pre_hook(look, with_kwargs=True)
    with halfframe.enabled(i2v, "self-duplicate") as run:
        generate(i2v)
    assert seen["high"] == {((16, 3, 4, 6), (20, 3, 4, 6), 18, True)}
    assert seen["low"] == {((16, 5, 4, 6), (20, 5, 4, 6), 30, True)}
    assert run.report is not None
    assert run.report.saved


@pytest.mark.parametrize("n", range(16))
def test_plain_runs_are_bit_identical_before_and_after_a_failure(i2v: Any, n: int) -> None:
    plain = generate(i2v)
    left = [n]

    def fail(*_: Any) -> None:
        left[0] -= 1
        if left[0] == -1:
            raise RuntimeError("injected")

    handles = [model.register_forward_pre_hook(fail) for model in (i2v.high_noise_model, i2v.low_noise_model)]
    before = dict(vars(i2v))
    with halfframe.enabled(i2v), pytest.raises(RuntimeError, match="injected"):
        generate(i2v)
    for handle in handles:
        handle.remove()
    assert vars(i2v) == before
    assert torch.equal(generate(i2v), plain)


def test_81_frames_on_every_version(i2v: Any) -> None:
    """wan22 2.2.0 is hard-wired to 81 frames, so this is what can be compared everywhere."""
    seen: list[tuple[int, ...]] = []
    for model in (i2v.high_noise_model, i2v.low_noise_model):
        model.register_forward_pre_hook(
            lambda _, args, kwargs: seen.append((args[0][0].shape[1], kwargs["y"][0].shape[1])), with_kwargs=True
        )
    with halfframe.enabled(i2v, "merge") as run:
        video = i2v.generate(PROMPT, IMAGE, max_area=16 * 24, frame_num=81, sampling_steps=4, offload_model=False)
    assert video.shape[1] == 81
    assert run.report is not None
    assert seen == [(11, 11)] * run.report.high.passes + [(21, 21)] * run.report.low.passes
    assert run.report.saved
