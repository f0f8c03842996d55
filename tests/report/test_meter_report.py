"""Counting a run and reporting it: the source's figures, plain data, and text that a person can read."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import pytest
from halfframe.cost import A14B, ExpertShape
from halfframe.meter import Meter
from hypothesis import given
from hypothesis import strategies as st

from halfframe import Report, Step

TOKENS = 30 * 52  # 832x480: latents 104 x 60, patches of 2 x 2


def switch_at(index: int, num_steps: int, num_frames: int) -> Step:
    return Step(
        index=index,
        num_steps=num_steps,
        timestep=842.0,
        sigma=0.8421,
        expert="low",
        expert_index=0,
        expert_steps=num_steps - index,
        num_frames=num_frames,
    )


def report_of(
    latent_frames: int = 13,
    high: int = 13,
    low: int = 7,
    *,
    halved: bool = True,
    shape: ExpertShape | None = A14B,
    tflops: float | None = None,
    measured: bool = False,
    options: dict[str, Any] | None = None,
) -> Report:
    """A run with guidance, as a host would have it counted: two forwards per step."""
    meter = Meter(shape, 4, tflops, measured)
    kept = (latent_frames + 1) // 2 if halved else latent_frames
    for expert, steps, count in (("high", high, kept), ("low", low, latent_frames)):
        for _ in range(steps):
            for _ in range(2):
                meter.forward(expert, count, count * TOKENS, latent_frames * TOKENS, 1, 0.25)  # type: ignore[arg-type]
            meter.step(expert, count)  # type: ignore[arg-type]
    return meter.report(
        host="wan",
        strategy="self-duplicate",
        options=options or {},
        noise="full",
        latent_frames=latent_frames,
        switch=switch_at(high, high + low, latent_frames) if low else None,
        why_not="the strategy left out no frame",
    )


def test_the_sources_table_for_49_frames_and_13_plus_7_steps() -> None:
    report = report_of()
    assert report.video_frames == 49
    assert (report.high.steps, report.low.steps) == (13, 7)
    assert (report.high.frame_steps_full, report.high.frame_steps) == (637, 325)
    assert (report.low.frame_steps_full, report.low.frame_steps) == (343, 343)
    assert (report.frame_steps_full, report.frame_steps) == (980, 668)
    assert f"{report.frame_steps_saved:.1%}" == "31.8%"
    assert f"{1 - report.high.frame_steps / report.high.frame_steps_full:.0%}" == "49%"


@given(st.integers(2, 40), st.integers(1, 30), st.integers(0, 30))
def test_frame_steps_are_video_frames_times_steps(latent_frames: int, high: int, low: int) -> None:
    report = report_of(latent_frames, high, low)
    video, kept = 4 * latent_frames - 3, 4 * ((latent_frames + 1) // 2) - 3
    assert report.frame_steps_full == video * (high + low)
    assert report.frame_steps == kept * high + video * low
    assert report.frame_steps_saved == pytest.approx(1 - report.frame_steps / report.frame_steps_full)
    assert report.steps == high + low


def test_forwards_frames_and_sequence_lengths_per_expert() -> None:
    report = report_of()
    assert (report.high.forwards, report.low.forwards) == (26, 14)
    assert (report.high.latent_frames, report.low.latent_frames) == ((7,), (13,))
    assert (report.high.sequence_lengths, report.low.sequence_lengths) == ((7 * TOKENS,), (13 * TOKENS,))


def test_frame_counts_that_differ_between_steps_are_all_reported_with_their_lengths() -> None:
    meter = Meter(None, 4, None, False)
    for count in (13, 7, 6, 7):
        meter.forward("high", count, count * 10, 130, 1, 0.0)
        meter.step("high", count)
    report = meter.report(
        host="wan", strategy="mine", options={}, noise="full", latent_frames=13, switch=None, why_not=""
    )
    assert report.high.latent_frames == (6, 7, 13)
    assert report.high.sequence_lengths == (60, 70, 130)
    assert report.high.frame_steps == 49 + 25 + 21 + 25


def test_arithmetic_and_speedup() -> None:
    report = report_of()
    kept, full = A14B.forward_flops(7 * TOKENS) / 1e12, A14B.forward_flops(13 * TOKENS) / 1e12
    assert report.high.tflops == pytest.approx(26 * kept)
    assert report.high.tflops_full == pytest.approx(26 * full)
    assert report.low.tflops == report.low.tflops_full == pytest.approx(14 * full)
    assert report.predicted_speedup == pytest.approx(40 * full / (26 * kept + 14 * full))


def test_clips_of_a_batch_are_counted_each() -> None:
    meter = Meter(A14B, 4, None, False)
    meter.forward("high", 7, 7 * TOKENS, 13 * TOKENS, 3, 0.0)
    report = meter.report(host="", strategy="", options={}, noise="full", latent_frames=13, switch=None, why_not="")
    assert report.high.tflops == pytest.approx(3 * A14B.forward_flops(7 * TOKENS) / 1e12)
    assert report.high.tflops_full == pytest.approx(3 * A14B.forward_flops(13 * TOKENS) / 1e12)


def test_a_forward_that_was_left_out_counts_in_full_only() -> None:
    meter = Meter(A14B, 4, None, False)
    meter.forward("low", 13, 13 * TOKENS, 13 * TOKENS, 1, 0.0)
    meter.skip("low", 13 * TOKENS, 1)
    meter.step("low", 13)
    report = meter.report(host="wan", strategy="", options={}, noise="full", latent_frames=13, switch=None, why_not="x")
    forward = A14B.forward_flops(13 * TOKENS) / 1e12
    assert (report.low.forwards, report.low.forwards_full) == (1, 2)
    assert report.low.tflops == pytest.approx(forward)
    assert report.low.tflops_full == pytest.approx(2 * forward)
    assert report.predicted_speedup == pytest.approx(2)
    assert report.guidance_truncated
    assert not report.halved
    assert "1 unconditional forward" in report.summary()
    assert "2 -> 1" in str(report)


def test_a_run_with_all_its_forwards_has_no_truncated_guidance() -> None:
    report = report_of()
    assert not report.guidance_truncated
    assert report.high.forwards == report.high.forwards_full
    assert "unconditional" not in report.summary()


def test_seconds_are_predicted_from_the_given_rate() -> None:
    report = report_of(tflops=400.0)
    assert report.high.predicted_seconds == pytest.approx(report.high.tflops / 400)  # type: ignore[operator]
    assert report.high.predicted_seconds_full == pytest.approx(report.high.tflops_full / 400)  # type: ignore[operator]
    assert report_of().high.predicted_seconds is None


def test_seconds_are_reported_only_if_they_were_measured() -> None:
    assert report_of(measured=True).high.seconds == pytest.approx(26 * 0.25)
    assert report_of().high.seconds is None


def test_experts_of_unknown_size_have_no_arithmetic() -> None:
    report = report_of(shape=None, tflops=400.0)
    assert report.high.tflops is report.high.tflops_full is report.high.predicted_seconds is None
    assert report.predicted_speedup is None
    assert report.frame_steps == 668
    assert "speed-up" not in str(report)


def test_a_run_that_never_began_has_nothing_to_divide_by() -> None:
    meter = Meter(A14B, 4, 400.0, False)
    report = meter.report(
        host="wan", strategy="mine", options={}, noise="full", latent_frames=0, switch=None, why_not="no call seen"
    )
    assert (report.video_frames, report.frame_steps_saved, report.predicted_speedup) == (0, 0.0, None)
    assert "no call seen" in str(report)


# Plain data.


@pytest.mark.parametrize(
    "report",
    [
        report_of(measured=True, tflops=400.0),
        report_of(shape=None),
        report_of(1, halved=False),
        report_of(low=0),
        report_of(options={"weight": 0.5, "name": "x", "flag": True, "none": None, "kernel": (1, 2), "callback": len}),
    ],
    ids=["everything", "no sizes", "one frame", "no switch", "options"],
)
def test_to_dict_goes_through_json(report: Report) -> None:
    data = report.to_dict()
    assert json.loads(json.dumps(data)) == data


def test_to_dict_holds_what_the_report_says() -> None:
    report = report_of(options={"weight": 0.5})
    data = report.to_dict()
    assert data["high"]["frame_steps"] == 325
    assert data["high"]["latent_frames"] == [7]
    assert data["low"]["steps"] == 7
    assert (data["frame_steps_full"], data["frame_steps"], data["steps"]) == (980, 668, 20)
    assert data["frame_steps_saved"] == report.frame_steps_saved
    assert data["predicted_speedup"] == report.predicted_speedup
    assert data["options"] == {"weight": 0.5}
    assert (data["switch_step"], data["switch_sigma"]) == (13, 0.8421)


# Text.


def test_the_table_shows_every_saving_as_full_to_run() -> None:
    text = str(report_of(tflops=400.0, measured=True))
    lines = text.splitlines()
    assert lines[0] == "halfframe report: self-duplicate on wan, 49 video frames, noise full"
    header, high, low, total = lines[1:5]
    assert header.split()[:5] == ["expert", "steps", "forwards", "latent", "seq_len"]
    assert high.split()[:8] == ["high-noise", "13", "26", "7", "10920", "637", "->", "325"]
    assert low.split()[:8] == ["low-noise", "7", "14", "13", "20280", "343", "->", "343"]
    assert total.split()[:6] == ["total", "20", "40", "980", "->", "668"]
    assert all(line.count("->") == 3 for line in (high, low, total))
    assert len({len(line) for line in (header, high, low, total)}) == 1  # columns line up
    assert "frame-steps saved 31.8%" in lines[5]
    assert "expert switch at step 14 of 20 (sigma 0.842)" in lines[5]
    assert len(lines) == 6


def test_the_table_leaves_out_what_nobody_asked_for() -> None:
    high = str(report_of()).splitlines()[2]
    assert high.split()[-2:] == ["-", "-"]
    assert high.count("->") == 2


def test_the_summary_is_one_line_with_the_figures() -> None:
    line = report_of().summary()
    assert "\n" not in line
    for part in (
        "self-duplicate on wan",
        "13 high-noise steps on 7 of 13 latent frames",
        "7 low-noise",
        "980 -> 668 frame-steps (31.8% saved)",
        f"predicted {report_of().predicted_speedup:.2f}x",
    ):
        assert part in line
    assert line.count("predicted") == 1


def test_a_clip_of_one_latent_frame_says_that_nothing_was_halved() -> None:
    report = report_of(1, halved=False)
    assert not report.halved
    assert report.note == "the strategy left out no frame"
    assert report.frame_steps == report.frame_steps_full
    assert "nothing was halved: the strategy left out no frame" in str(report)
    line = report.summary()
    assert line == "halfframe: nothing was halved (the strategy left out no frame); 20 steps at full length"


def test_a_halved_run_carries_no_note() -> None:
    report = report_of()
    assert report.halved
    assert report.note == ""
    assert "nothing was halved" not in str(report) + report.summary()


def test_no_expert_switch_no_mention_of_one() -> None:
    report = report_of(low=0)
    assert report.switch_step is None
    assert "expert switch" not in str(report)
    assert "expert switch" in str(replace(report, switch_step=13, switch_sigma=0.8))


def test_options_that_cannot_be_copied_do_not_break_the_dict() -> None:
    import threading

    meter = Meter(None, 4, None, False)
    report = meter.report(
        host="h",
        strategy="s",
        options={"lock": threading.Lock(), "n": 3},
        noise="full",
        latent_frames=5,
        switch=None,
        why_not="x",
    )
    options = report.to_dict()["options"]
    assert options["n"] == 3
    assert "lock" in options["lock"]
    json.dumps(report.to_dict())
