"""Truncated guidance on the official hosts, with and without halving, against the reference loop."""

from __future__ import annotations

from typing import Any

import pytest
import torch

import halfframe

from .test_wan_t2v import ARGS, generate, reference, spy

SCALES = (3.0, 4.0)  # low noise, high noise
# 8 steps at shift 12 are 6 + 2.
CASES = [(5, 3), (1, 0), (0, 2), (2, 6), (100, 100)]


def passes(truncate: tuple[int, int], every: int = 1) -> list[int]:
    last, last_high = truncate
    between = [i for i in range(8) if (i if i < 6 else i - 6) % every]
    return [1 if i >= 8 - last or (i < 6 and i >= 6 - last_high) or i in between else 2 for i in range(8)]


@pytest.mark.parametrize("truncate", CASES)
@pytest.mark.parametrize("mode", ["conditional", "delta"])
@pytest.mark.parametrize("strategy", ["self-duplicate", None])
def test_video_and_pass_counts(t2v: Any, truncate: tuple[int, int], mode: Any, strategy: str | None) -> None:
    half = strategy is not None
    expected = reference(t2v, guide_scale=SCALES, truncate=truncate, reuse_delta=mode == "delta", half=half)
    seen: list[Any] = []
    for model in (t2v.high_noise_model, t2v.low_noise_model):
        spy(model, seen)
    last, last_high = truncate
    with halfframe.enabled(
        t2v, strategy, guidance=halfframe.Guidance(skip_last=last, skip_last_high=last_high, mode=mode)
    ) as run:
        video = generate(t2v, guide_scale=SCALES)
    # c - (c - d) is d up to rounding, which the random experts amplify from step to step.
    assert (video - expected).abs().mean() < 1e-5
    torch.testing.assert_close(video, expected, rtol=0, atol=1e-3 if mode == "delta" else 2e-5)
    counts = passes(truncate)
    report = run.report
    assert report is not None
    assert len(seen) == sum(counts)
    assert (report.high.passes, report.low.passes) == (sum(counts[:6]), sum(counts[6:]))
    assert (report.high.passes_full, report.low.passes_full) == (12, 4)
    assert (report.saved, report.guidance_truncated) == (half, True)
    assert report.predicted_speedup is not None
    assert report.predicted_speedup > 16 / sum(counts) - 1e-9
    assert f"{16 - sum(counts)} forward pass" in report.summary()


@pytest.mark.parametrize("every", [2, 3, 100])
@pytest.mark.parametrize("truncate", [(0, 0), (1, 2)])
@pytest.mark.parametrize("mode", ["conditional", "delta"])
@pytest.mark.parametrize("strategy", ["self-duplicate", None])
def test_guidance_computed_at_every_nth_step(
    t2v: Any, every: int, truncate: tuple[int, int], mode: Any, strategy: str | None
) -> None:
    """At the steps between, the difference stands in; the last steps are truncated as `mode` says."""
    half = strategy is not None
    expected = reference(
        t2v, guide_scale=SCALES, truncate=truncate, reuse_delta=mode == "delta", every=every, half=half
    )
    seen: list[Any] = []
    for model in (t2v.high_noise_model, t2v.low_noise_model):
        spy(model, seen)
    last, last_high = truncate
    with halfframe.enabled(
        t2v,
        strategy,
        guidance=halfframe.Guidance(skip_last=last, skip_last_high=last_high, mode=mode, every=every),
    ) as run:
        video = generate(t2v, guide_scale=SCALES)
    assert (video - expected).abs().mean() < 1e-5
    torch.testing.assert_close(video, expected, rtol=0, atol=1e-3)
    counts = passes(truncate, every)
    report = run.report
    assert report is not None
    assert len(seen) == sum(counts)
    assert (report.high.passes, report.low.passes) == (sum(counts[:6]), sum(counts[6:]))
    assert (report.high.passes_full, report.low.passes_full) == (12, 4)
    assert (report.saved, report.guidance_truncated) == (half, True)
    assert f"{16 - sum(counts)} forward pass" in report.summary()


def test_zero_is_a_bit_exact_no_op(t2v: Any) -> None:
    with halfframe.enabled(t2v):
        plain = generate(t2v)
    with halfframe.enabled(t2v, guidance=halfframe.Guidance(skip_last=0, skip_last_high=0, mode="delta")):
        assert torch.equal(generate(t2v), plain)
    with halfframe.enabled(t2v, guidance=halfframe.Guidance(every=1)):
        assert torch.equal(generate(t2v), plain)


def test_nothing_asked_for_is_a_plain_run_and_says_so(t2v: Any) -> None:
    plain = generate(t2v)
    with (
        halfframe.enabled(t2v, None),
        pytest.warns(halfframe.HalfframeWarning, match="nothing was skipped: no strategy was asked for"),
    ):
        assert torch.equal(generate(t2v), plain)


def test_guide_scale_one_loses_nothing(t2v: Any) -> None:
    """At scale 1 the guided prediction is the conditional one, so skipping the other changes only rounding."""
    plain = generate(t2v, guide_scale=(1.0, 1.0))
    with halfframe.enabled(t2v, None, guidance=halfframe.Guidance(skip_last=ARGS["sampling_steps"])):
        video = generate(t2v, guide_scale=(1.0, 1.0))
    torch.testing.assert_close(video, plain, rtol=0, atol=1e-5)


def test_experts_of_one_step_keep_their_guidance_and_the_run_says_so(t2v: Any) -> None:
    """1 step is high-noise only, so guidance at every second step is guidance at every step."""
    plain = generate(t2v, sampling_steps=1)
    with (
        halfframe.enabled(t2v, None, guidance=halfframe.Guidance(every=2)) as run,
        pytest.warns(
            halfframe.HalfframeWarning,
            match="no unconditional pass was skipped: the first step of each expert computes it",
        ),
    ):
        assert torch.equal(generate(t2v, sampling_steps=1), plain)
    assert run.report is not None
    assert (run.report.high.passes, run.report.high.passes_full) == (2, 2)


def test_a_fork_with_one_pass_per_step_has_nothing_to_skip(t2v: Any) -> None:
    if "lightning" not in type(t2v).generate.__code__.co_names:
        pytest.skip("this version of wan always makes two forward passes per step")
    t2v.lightning = True
    with halfframe.enabled(t2v) as run:
        plain = generate(t2v)
        assert run.report is not None
    for guidance in (halfframe.Guidance(skip_last=8), halfframe.Guidance(every=2)):
        with (
            halfframe.enabled(t2v, guidance=guidance) as run,
            pytest.warns(halfframe.HalfframeWarning, match="no unconditional pass was skipped: there was none to skip"),
        ):
            assert torch.equal(generate(t2v), plain)
        assert run.report is not None
        assert not run.report.guidance_truncated
