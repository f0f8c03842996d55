"""Counting a run and reporting it: the source's figures, plain data, and text that a person can read."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from halfframe import Report
from halfframe.report.cost import A14B, H200, ExpertShape
from halfframe.report.meter import Meter

TOKENS = 30 * 52  # 832x480: latents 104 x 60, patches of 2 x 2


def seconds(tokens: int) -> float:
    """A forward pass of A14B on an H200, written out: 317 and 577 TFLOP/s for the two kinds of terms."""
    linear = 40 * tokens * (12 * 5120**2 + 4 * 5120 * 13824 + 4 * 512 * 5120)
    return linear / 317e12 + 40 * 4 * tokens**2 * 5120 / 577e12


def report_of(
    latent_frames: int = 13,
    high: int = 13,
    low: int = 7,
    *,
    halved: bool = True,
    shape: ExpertShape | None = A14B,
    measured: bool = False,
) -> Report:
    """A run with guidance, as a host would have it counted: two passes per step."""
    meter = Meter(shape, 4, measured)
    kept = (latent_frames + 1) // 2 if halved else latent_frames
    for expert, steps, count in (("high", high, kept), ("low", low, latent_frames)):
        for _ in range(steps):
            for _ in range(2):
                meter.forward(expert, count, count * TOKENS, latent_frames * TOKENS, 1, 0.25)  # type: ignore[arg-type]
            meter.step(expert, count, "full" if count == latent_frames else "merge:2")  # type: ignore[arg-type]
    return meter.report(
        host="wan",
        strategy="merge",
        latent_frames=latent_frames,
        switch=(high, 0.8421) if low else None,
        why_not="the strategy skipped no frame",
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
    assert report.steps == high + low == len(report.moves)


def test_passes_frames_and_sequence_lengths_per_expert() -> None:
    report = report_of()
    assert (report.high.passes, report.low.passes) == (26, 14)
    assert (report.high.latent_frames, report.low.latent_frames) == ((7,), (13,))
    assert (report.high.sequence_lengths, report.low.sequence_lengths) == ((7 * TOKENS,), (13 * TOKENS,))


def test_frame_counts_that_differ_between_steps_are_all_reported_with_their_lengths() -> None:
    meter = Meter(None, 4, False)
    for count in (13, 7, 6, 7):
        meter.forward("high", count, count * 10, 130, 1, 0.0)
        meter.step("high", count, "mine")
    report = meter.report(host="wan", strategy="mine", latent_frames=13, switch=None, why_not="")
    assert report.high.latent_frames == (6, 7, 13)
    assert report.high.sequence_lengths == (60, 70, 130)
    assert report.high.passes_by_frames == ((6, 1), (7, 2), (13, 1))
    assert report.high.frame_steps == 49 + 25 + 21 + 25


def test_predicted_time_and_speedup() -> None:
    report = report_of()
    kept, full = seconds(7 * TOKENS), seconds(13 * TOKENS)
    assert report.high.predicted_seconds == pytest.approx(26 * kept)
    assert report.high.predicted_seconds_full == pytest.approx(26 * full)
    assert report.low.predicted_seconds == report.low.predicted_seconds_full == pytest.approx(14 * full)
    assert report.predicted_speedup == pytest.approx(40 * full / (26 * kept + 14 * full))


def test_clips_of_a_batch_are_counted_each() -> None:
    meter = Meter(A14B, 4, False)
    meter.forward("high", 7, 7 * TOKENS, 13 * TOKENS, 3, 0.0)
    report = meter.report(host="", strategy="", latent_frames=13, switch=None, why_not="")
    assert report.high.predicted_seconds == pytest.approx(3 * seconds(7 * TOKENS))
    assert report.high.predicted_seconds_full == pytest.approx(3 * seconds(13 * TOKENS))


def test_a_pass_that_was_skipped_counts_in_full_only() -> None:
    meter = Meter(A14B, 4, False)
    meter.forward("low", 13, 13 * TOKENS, 13 * TOKENS, 1, 0.0)
    meter.skip("low", 13 * TOKENS, 1)
    meter.step("low", 13, "full+cond")
    report = meter.report(host="wan", strategy="", latent_frames=13, switch=None, why_not="x")
    assert (report.low.passes, report.low.passes_full) == (1, 2)
    assert report.low.predicted_seconds == pytest.approx(seconds(13 * TOKENS))
    assert report.low.predicted_seconds_full == pytest.approx(2 * seconds(13 * TOKENS))
    assert report.predicted_speedup == pytest.approx(2)
    assert report.guidance_truncated
    assert not report.saved
    assert "1 forward pass skipped" in report.summary()
    assert "2 -> 1" in str(report)
    assert "moves: full+cond" in str(report)


def test_a_run_with_all_its_passes_has_no_truncated_guidance() -> None:
    report = report_of()
    assert not report.guidance_truncated
    assert report.high.passes == report.high.passes_full
    assert "pass" not in report.summary()


def test_a_step_that_reuses_is_saved_time_without_frames() -> None:
    meter = Meter(A14B, 4, False)
    meter.forward("high", 13, 13 * TOKENS, 13 * TOKENS, 1, 0.0)
    meter.step("high", 13, "full")
    meter.skip("high", 13 * TOKENS, 1)
    meter.step("high", 0, "reuse")
    report = meter.report(host="wan", strategy="", latent_frames=13, switch=None, why_not="x")
    assert report.saved
    assert (report.frame_steps, report.frame_steps_full) == (49, 98)
    assert report.predicted_speedup == pytest.approx(2)


def test_seconds_are_reported_only_if_they_were_measured() -> None:
    assert report_of(measured=True).high.seconds == pytest.approx(26 * 0.25)
    assert report_of().high.seconds is None


def test_experts_of_unknown_size_have_no_predicted_time() -> None:
    report = report_of(shape=None)
    assert report.high.predicted_seconds is report.high.predicted_seconds_full is None
    assert report.predicted_speedup is None
    assert report.frame_steps == 668
    assert "speed-up" not in str(report)


def test_a_run_that_never_began_has_nothing_to_divide_by() -> None:
    meter = Meter(A14B, 4, False)
    report = meter.report(host="wan", strategy="mine", latent_frames=0, switch=None, why_not="no call seen")
    assert (report.video_frames, report.frame_steps_saved, report.predicted_speedup) == (0, 0.0, None)
    assert "no call seen" in str(report)


@pytest.mark.parametrize(
    "report",
    [report_of(measured=True), report_of(shape=None), report_of(1, halved=False), report_of(low=0)],
    ids=["everything", "no sizes", "one frame", "no switch"],
)
def test_to_dict_goes_through_json(report: Report) -> None:
    data = report.to_dict()
    assert json.loads(json.dumps(data)) == data


def test_to_dict_holds_what_the_report_says() -> None:
    report = report_of()
    data = report.to_dict()
    assert data["high"]["frame_steps"] == 325
    assert data["high"]["latent_frames"] == [7]
    assert data["low"]["steps"] == 7
    assert (data["frame_steps_full"], data["frame_steps"], data["steps"]) == (980, 668, 20)
    assert data["frame_steps_saved"] == report.frame_steps_saved
    assert data["predicted_speedup"] == report.predicted_speedup
    assert data["moves"] == ["merge:2"] * 13 + ["full"] * 7
    assert (data["switch_step"], data["switch_sigma"]) == (13, 0.8421)


def test_the_table_shows_every_saving_as_full_to_run() -> None:
    lines = str(report_of(measured=True)).splitlines()
    assert lines[0] == "halfframe report: merge on wan, 49 video frames"
    header, high, low, total = lines[1:5]
    assert header.split()[:5] == ["expert", "steps", "passes", "latent", "seq_len"]
    assert high.split()[:8] == ["high-noise", "13", "26", "7", "10920", "637", "->", "325"]
    assert low.split()[:8] == ["low-noise", "7", "14", "13", "20280", "343", "->", "343"]
    assert total.split()[:6] == ["total", "20", "40", "980", "->", "668"]
    assert all(line.count("->") == 2 for line in (high, low, total))
    assert len({len(line) for line in (header, high, low, total)}) == 1  # columns line up
    assert lines[5] == "moves: 13 x merge:2, 7 x full"
    assert "frame-steps saved 31.8%" in lines[6]
    assert "expert switch at step 14 of 20 (sigma 0.842)" in lines[6]
    assert len(lines) == 7


def test_the_table_leaves_out_what_nobody_asked_for() -> None:
    assert str(report_of()).splitlines()[2].split()[-1] == "-"


def test_the_summary_is_one_line_with_the_figures() -> None:
    line = report_of().summary()
    assert "\n" not in line
    for part in (
        "merge on wan",
        "13 high-noise steps on 7 of 13 latent frames",
        "7 low-noise",
        "980 -> 668 frame-steps (31.8% saved)",
        f"predicted {report_of().predicted_speedup:.2f}x",
    ):
        assert part in line
    assert line.count("predicted") == 1


def test_a_clip_of_one_latent_frame_says_that_nothing_was_skipped() -> None:
    report = report_of(1, halved=False)
    assert not report.saved
    assert report.note == "the strategy skipped no frame"
    assert report.frame_steps == report.frame_steps_full
    assert "nothing was skipped in time: the strategy skipped no frame" in str(report)
    line = report.summary()
    assert line == "halfframe: nothing was skipped in time (the strategy skipped no frame); 20 steps at full length"


def test_a_run_that_saved_carries_no_note() -> None:
    report = report_of()
    assert report.saved
    assert report.note == ""
    assert "nothing was skipped" not in str(report) + report.summary()


def test_what_may_surprise_is_in_the_dict_and_in_the_line() -> None:
    report = report_of(low=0)
    (note,) = report.notes
    assert "no low-noise step" in note
    assert report.to_dict()["notes"] == [note]
    assert report.summary().endswith(f"; note: {note}")
    assert "\n" not in report.summary()
    assert report_of().to_dict()["notes"] == []


def test_no_expert_switch_no_mention_of_one() -> None:
    report = report_of(low=0)
    assert report.switch_step is None
    assert "expert switch" not in str(report)
    assert "expert switch" in str(replace(report, switch_step=13, switch_sigma=0.8))


def test_the_rates_are_the_h200s() -> None:
    assert A14B.seconds(13 * TOKENS, H200) == pytest.approx(seconds(13 * TOKENS))
