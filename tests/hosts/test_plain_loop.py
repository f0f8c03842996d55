"""Every built-in strategy on every host, with and without a last image, against `plain_loop`."""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable
from typing import Any
from unittest import mock

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

import halfframe
from halfframe.testing import WanSizes, import_wan, tiny_diffusers_i2v, tiny_diffusers_t2v, tiny_wan_i2v, tiny_wan_t2v

from ..helpers_diffusers import PROMPT, SCHEDULERS, picture, run, seeded
from .plain_loop import Parts, diffusers_parts, official_parts, plain_loop, short_clip
from .reference import duplicate
from .test_wan_i2v import IMAGE, condition

SCALES = (4.0, 3.0)  # of the high-noise expert, and of the other
STEPS = 6  # at shift 12 four of them are the high-noise expert's, five in diffusers' image-to-video
MAKE: dict[str, Callable[..., Any]] = {
    "official t2v": tiny_wan_t2v,
    "official i2v": tiny_wan_i2v,
    "diffusers t2v": tiny_diffusers_t2v,
    "diffusers i2v": tiny_diffusers_i2v,
    "last image": tiny_diffusers_i2v,
}
HOSTS = pytest.mark.parametrize("host", MAKE)

CASES: list[tuple[str, dict[str, Any]]] = [
    ("self-duplicate", {}),
    ("self-duplicate", {"noise": "short"}),
    ("previous-odd", {}),
    ("own-noise", {}),
    ("own-noise", {"stride": 3, "until": "end", "positions": "contiguous"}),
    ("interpolate", {}),
    ("interpolate", {"stride": 4, "full_start": 1}),
    ("interleave", {}),
    ("interleave", {"stride": 3, "until": "end", "full_end": 1}),
    ("interleave", {"stride": 4, "until": 2, "positions": "contiguous"}),
    ("merge", {}),
    ("merge", {"stride": 3, "until": 2}),
    ("merge", {"stride": 4, "until": "end", "full_end": 1}),
    ("merge", {"full_start": 1, "full_end": 1, "positions": "contiguous"}),
]
DEFAULTS = ["self-duplicate", "previous-odd", "own-noise", "interpolate", "interleave", "merge"]


@functools.cache
def pipe_of(host: str) -> Any:
    """One pipeline per host for all tests here. Its experts are toned down, so that rounding stays where it is."""
    pipe = MAKE[host](sizes=WanSizes(num_layers=1))
    for expert, layer in [
        *((name, "proj_out") for name in ("transformer", "transformer_2")),
        *((name, "head.head") for name in ("high_noise_model", "low_noise_model")),
    ]:
        if hasattr(pipe, expert):
            getattr(pipe, expert).get_submodule(layer).weight.data.mul_(0.5)
    pipe.vae.encode = remembering(pipe.vae.encode)  # most of the time of a run this small
    return pipe


def remembering(function: Callable[[Any], Any]) -> Callable[[Any], Any]:
    """`function` of a clip or a list of one, computed once for each."""
    known: dict[bytes, Any] = {}

    def remembered(clip: Any) -> Any:
        key = torch.cat(list(clip)).numpy().tobytes()
        if key not in known:
            known[key] = function(clip)
        return known[key]

    return remembered


def parts_of(host: str, frames: int, scheduler: str = "unipc", prompts: tuple[str, ...] = (PROMPT,)) -> Parts:
    """The parts of `host`'s pipeline, for a clip of so many latent frames."""
    pipe, video_frames = pipe_of(host), 4 * frames - 3
    if "official" in host:
        return official_parts(
            pipe,
            import_wan("text2video"),
            PROMPT,
            frame_num=video_frames,
            sampling_steps=STEPS,
            shift=12.0,
            seed=7,
            sample_solver=scheduler,
            guide_scale=SCALES[::-1],
            condition=condition(pipe, video_frames) if "i2v" in host else None,
        )
    pipe.scheduler = SCHEDULERS[scheduler]()
    return diffusers_parts(pipe, prompts, num_frames=video_frames, steps=STEPS, scales=SCALES, seed=7, **images(host))


def images(host: str) -> dict[str, Any]:
    if host == "last image":
        return {"image": picture(), "last_image": picture(1)}
    return {"image": picture()} if host == "diffusers i2v" else {}


def sample(host: str, frames: int, scheduler: str = "unipc", **arguments: Any) -> Tensor:
    """Final latents ``(B, 16, F, 4, 6)`` of the pipeline's own call."""
    pipe, video_frames = pipe_of(host), 4 * frames - 3
    if "official" not in host:
        pipe.scheduler = SCHEDULERS[scheduler]()
        return run(
            pipe,
            num_frames=video_frames,
            num_inference_steps=STEPS,
            guidance_scale=SCALES[0],
            guidance_scale_2=SCALES[1],
            **images(host),
            **arguments,
        )
    latents: list[Tensor] = []
    image, area = ((IMAGE,), {"max_area": 32 * 48}) if "i2v" in host else ((), {"size": (48, 32)})
    with mock.patch.object(pipe.vae, "decode", lambda clips: latents.extend(clips) or [torch.zeros(3, 1, 32, 48)]):
        pipe.generate(
            PROMPT,
            *image,
            **area,
            frame_num=video_frames,
            sampling_steps=STEPS,
            shift=12.0,
            seed=7,
            sample_solver=scheduler,
            guide_scale=SCALES[::-1],
            offload_model=False,
        )
    return latents[0][None]


def halved(host: str, frames: int, strategy: Any, scheduler: str = "unipc", **options: Any) -> Tensor:
    with halfframe.enabled(pipe_of(host), strategy, **options):
        return sample(host, frames, scheduler)


def close(seen: Tensor, expected: Tensor) -> None:
    torch.testing.assert_close(seen, expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize(
    ("host", "scheduler"),
    [(host, "unipc") for host in MAKE]
    + [(host, "dpm++") for host in MAKE]
    + [("last image", "euler"), ("last image", "heun")],
)
def test_where_every_frame_is_computed_the_plain_loop_is_the_hosts_own(host: str, scheduler: str) -> None:
    """Otherwise it would prove nothing."""
    close(plain_loop(parts_of(host, 6, scheduler), "interpolate", stride=1), sample(host, 6, scheduler))


@HOSTS
@pytest.mark.parametrize(("strategy", "options"), CASES)
def test_strategies_and_their_options(host: str, strategy: str, options: dict[str, Any]) -> None:
    expected = plain_loop(parts_of(host, 8), strategy, **options)
    close(halved(host, 8, strategy, **options), expected)


@pytest.mark.parametrize(
    ("host", "scheduler"),
    [
        ("official t2v", "dpm++"),
        ("official i2v", "dpm++"),
        *((host, scheduler) for host in ("diffusers t2v", "last image") for scheduler in ("dpm++", "euler", "heun")),
    ],
)
@pytest.mark.parametrize("strategy", DEFAULTS)
def test_schedulers(host: str, scheduler: str, strategy: str) -> None:
    expected = plain_loop(parts_of(host, 6, scheduler), strategy)
    close(halved(host, 6, strategy, scheduler), expected)


@st.composite
def options(draw: st.DrawFn) -> tuple[str, dict[str, Any]]:
    name = draw(st.sampled_from(["own-noise", "interpolate", "interleave", "merge"]))
    return name, {
        "stride": draw(st.integers(2, 5)),
        "full_start": draw(st.integers(0, 2)),
        "full_end": draw(st.integers(0, 2)),
        "until": draw(st.one_of(st.sampled_from(["switch", "end"]), st.integers(1, 8))),
        "positions": draw(st.sampled_from(["true", "contiguous"])),
    }


@settings(deadline=None, max_examples=40)
@given(host=st.sampled_from(["diffusers t2v", "official t2v", "last image"]), frames=st.integers(2, 11), how=options())
@pytest.mark.filterwarnings("ignore:halfframe. nothing was skipped")  # some of these windows are empty
def test_any_options_at_any_length(host: str, frames: int, how: tuple[str, dict[str, Any]]) -> None:
    strategy, chosen = how
    expected = plain_loop(parts_of(host, frames), strategy, **chosen)
    close(halved(host, frames, strategy, **chosen), expected)


# A last image: its frame is always computed, and never made up.


@pytest.mark.parametrize("frames", [2, 3, 4, 5])
@pytest.mark.parametrize("strategy", DEFAULTS)
def test_a_last_image_at_the_ends_of_short_clips(frames: int, strategy: str) -> None:
    """In the clips of odd length some strategies compute the last frame anyway, at some of their steps."""
    expected = plain_loop(parts_of("last image", frames), strategy)
    nothing = pytest.warns(halfframe.HalfframeWarning, match="nothing was skipped")  # both frames have images
    with nothing if frames == 2 else contextlib.nullcontext():
        close(halved("last image", frames, strategy), expected)


def blend(latents: Tensor, num_frames: int) -> Tensor:
    """Skipped frames are the mean of their neighbours: linear, so a scheduler's history follows."""
    clip = duplicate(latents, num_frames).clone()
    for k in range(1, num_frames - 1, 2):
        clip[..., k, :, :] = (clip[..., k - 1, :, :] + clip[..., k + 1, :, :]) / 2
    return clip


@pytest.mark.parametrize("frames", [6, 7])
@pytest.mark.parametrize("scheduler", ["unipc", "heun"])
def test_a_function_of_the_users_own_and_a_last_image(frames: int, scheduler: str) -> None:
    expected = short_clip(parts_of("last image", frames, scheduler), expand=blend)
    close(halved("last image", frames, blend, scheduler), expected)


def test_the_last_frame_is_seen_and_left_alone_at_the_expert_switch() -> None:
    """What a function makes of it does not count."""

    def loud(latents: Tensor, num_frames: int) -> Tensor:
        clip = duplicate(latents, num_frames)
        clip[..., -1, :, :] = 100 * clip[..., -1, :, :]
        return clip

    expected = short_clip(parts_of("last image", 6), expand=loud)
    latents = halved("last image", 6, loud)
    close(latents, expected)
    assert latents.abs().max() < 50


@pytest.mark.parametrize("host", ["diffusers t2v", "last image"])
@pytest.mark.parametrize("strategy", DEFAULTS)
def test_a_batch(host: str, strategy: str) -> None:
    prompts = (PROMPT, "a cat on a mat")
    expected = plain_loop(parts_of(host, 6, prompts=prompts), strategy)
    with halfframe.enabled(pipe_of(host), strategy):
        latents = sample(host, 6, prompt=list(prompts), negative_prompt=["blurry"] * 2, generator=seeded(7))
    close(latents, expected)
