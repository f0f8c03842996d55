"""What would give another video, or a surprising one, without a word."""

from __future__ import annotations

from typing import Any

import pytest
import torch

import halfframe
from halfframe.sampling.frame_map import FrameMap
from halfframe.sampling.outcome import warn_of_shared_noise
from halfframe.sampling.schedule import Schedule

from . import interrupts

ARGS: dict[str, Any] = {"size": (16, 16), "frame_num": 17, "sampling_steps": 6, "offload_model": False}


def given(latents: torch.Tensor, strategy: str) -> None:
    pipe, _ = interrupts.small("diffusers")
    with halfframe.enabled(pipe, strategy):
        pipe("a ball", height=64, width=64, num_frames=17, num_inference_steps=2, output_type="latent", latents=latents)


def test_noise_that_frames_share_is_warned_about_where_means_are_computed() -> None:
    one = torch.randn(1, 16, 1, 8, 8).expand(-1, -1, 5, -1, -1).contiguous()
    with pytest.warns(halfframe.HalfframeWarning, match="share their noise"):
        given(one, "merge")
    given(one, "interleave")
    given(torch.randn(1, 16, 5, 8, 8), "merge")


def test_noise_of_a_tiny_clip_is_not_taken_for_shared_noise_by_chance() -> None:
    step = halfframe.Step(0, 2, 1000.0, 1.0, "high", 0, 1, 2, 875.0, False, ())
    schedule = Schedule.plan([step], halfframe.Merge())
    for seed in range(300):
        latents = torch.randn(16, 2, 2, 2, generator=torch.Generator().manual_seed(seed))
        warn_of_shared_noise(schedule, latents, "merge")
    with pytest.warns(halfframe.HalfframeWarning, match="share their noise"):
        warn_of_shared_noise(schedule, latents[:, :1].expand(-1, 2, -1, -1), "merge")


class Odd(halfframe.Strategy):
    name = "odd"

    def __init__(self, move: Any = None, start: Any = None, switch: Any = None) -> None:
        self._answers = move, start, switch

    def move(self, step: halfframe.Step) -> Any:
        answer = self._answers[0]
        return answer(step) if answer and step.expert == "high" else None

    def allocate(self, allocation: halfframe.Allocation) -> Any:
        noise = super().allocate(allocation)
        return self._answers[1](noise) if self._answers[1] else noise

    def at_switch(self, latents: torch.Tensor) -> Any:
        return self._answers[2](latents) if self._answers[2] else latents


def selecting(positions: Any) -> Any:
    def move(step: halfframe.Step) -> FrameMap:
        rows = [[float(frame == 2 * kept) for frame in range(5)] for kept in range(3)]
        return FrameMap(rows, [list(row) for row in zip(*rows, strict=True)], positions)  # type: ignore[arg-type]

    return move


@pytest.mark.parametrize(
    "odd",
    [
        Odd(move=lambda step: [0, 2]),
        Odd(move=selecting([0, 2, 4000])),
        Odd(move=selecting([0, float("nan"), 4])),
        Odd(start=lambda noise: noise.tolist()),
        Odd(start=lambda noise: noise * float("nan")),
        Odd(move=lambda step: FrameMap.select([0, 2, 4], 5), switch=lambda latents: latents.tolist()),
        Odd(move=lambda step: FrameMap.select([0, 2, 4], 5), switch=lambda latents: latents * float("inf")),
    ],
)
def test_a_strategy_that_answers_nonsense_is_named(t2v: Any, odd: Odd) -> None:
    with halfframe.enabled(t2v, odd), pytest.raises(halfframe.StrategyError, match="'odd'"):
        t2v.generate("a ball", **ARGS)


def test_image_to_video_reports_what_merge_does_there(i2v: Any) -> None:
    from PIL import Image

    with halfframe.enabled(i2v, "merge") as run:
        i2v.generate(
            "a ball", Image.new("RGB", (32, 32)), max_area=1024, frame_num=17, sampling_steps=6, offload_model=False
        )
    assert run.report is not None
    assert "interleave:2" in str(run.report)


def test_a_schedule_without_a_low_noise_step_is_in_the_report(t2v: Any) -> None:
    with halfframe.enabled(t2v) as run:
        t2v.generate("a ball", **{**ARGS, "sampling_steps": 2, "shift": 12.0})
    assert run.report is not None
    assert "no low-noise step" in str(run.report)


def test_a_stride_that_leaves_one_frame_is_in_the_report(t2v: Any) -> None:
    with halfframe.enabled(t2v, "interpolate", stride=50) as run:
        t2v.generate("a ball", **ARGS)
    assert "1 of 5 latent frames" in str(run.report)


def test_guidance_that_is_left_out_throughout_is_in_the_report(t2v: Any) -> None:
    with halfframe.enabled(t2v, guidance=halfframe.Guidance(skip_last=6)) as run:
        t2v.generate("a ball", **ARGS)
    assert "without guidance" in str(run.report)
