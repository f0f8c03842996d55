"""`compare`: on a function that makes arrays, and on real pipelines with random weights."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from halfframe.compare import (
    ComparisonError,
    Run,
    Trial,
    Variant,
    compare,
    diffusers_generate,
    equal_cost,
    fewer_steps,
    official_generate,
)
from halfframe.compare.results import Comparison, Results
from halfframe.errors import OptionError, StrategyError
from halfframe.testing import TINY, tiny_diffusers_t2v

PROMPT = "a red ball rolls over stripes"
HALVED = Variant("halved", {"strategy": "self-duplicate"})


def grey(prompt: str, seed: int, steps: int) -> np.ndarray:
    """A clip ``(5, 16, 16, 3)`` that depends on all three."""
    level = 0.1 * len(prompt) + 0.01 * seed + 0.2 / steps
    return np.full((5, 16, 16, 3), level) + 0.01 * np.arange(5)[:, None, None, None]


def official(pipe: Any, **arguments: Any) -> Any:
    return official_generate(
        pipe, size=(32, 32), frame_num=9, shift=12.0, guide_scale=(3.0, 4.0), offload_model=False, **arguments
    )


def test_every_variant_makes_every_case() -> None:
    calls: list[tuple[str, int, int]] = []

    def generate(prompt: str, seed: int, steps: int) -> np.ndarray:
        calls.append((prompt, seed, steps))
        return grey(prompt, seed, steps)

    result = compare(
        generate, [fewer_steps(2), Variant("same")], prompts=["a", "bc"], seeds=[0, 7], steps=4, warm_up_steps=1
    )
    cases = [("a", 0), ("a", 7), ("bc", 0), ("bc", 7)]
    assert calls == [("a", 0, 1), *((*case, steps) for case in cases for steps in (4, 2, 4))]
    fewer, same = result.variants
    assert [(trial.prompt, trial.seed) for trial in fewer.trials] == cases
    assert fewer.mean(lambda q: q.mse) == pytest.approx((0.2 / 2 - 0.2 / 4) ** 2)
    assert same.mean(lambda q: q.psnr) == float("inf")
    assert result.baseline.trials[0].quality is None
    assert result.facts["weights"] == "not stated"
    assert result.speedup(fewer) is not None
    assert result.predicted_speedup(fewer) == 2


def test_seconds_are_of_the_call_alone_and_medians_are_compared(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [0.0]
    costs = iter([10.0, 5.0, 30.0, 10.0, 20.0, 4.0])  # baseline, variant, for three seeds

    def generate(prompt: str, seed: int, steps: int) -> np.ndarray:
        now[0] += next(costs)
        return grey(prompt, seed, steps)

    monkeypatch.setattr("halfframe.compare.timing.clock", lambda device, synchronize: now[0])
    result = compare(generate, [fewer_steps(2)], prompts=["a"], seeds=[0, 1, 2], steps=4, warm_up_steps=0)
    assert result.seconds(result.baseline) == 20
    assert result.seconds(result.variants[0]) == 5
    assert result.speedups(result.variants[0]) == [2, 3, 5]
    assert result.speedup(result.variants[0]) == 3


def test_a_variant_that_raises_is_named_and_the_others_go_on(tmp_path: Path) -> None:
    def generate(prompt: str, seed: int, steps: int) -> np.ndarray:
        if steps == 3 and seed == 1:
            raise RuntimeError("out of memory")
        return grey(prompt, seed, steps)

    lines: list[str] = []
    result = compare(
        generate,
        [fewer_steps(3), fewer_steps(2)],
        prompts=["a"],
        seeds=[0, 1, 2],
        steps=4,
        output=tmp_path,
        progress=lines.append,
    )
    failed, other = result.variants
    assert result.failures == [failed]
    assert failed.error == "RuntimeError: out of memory"
    assert (len(failed.trials), len(other.trials)) == (1, 3)
    assert any("fewer steps, 3 FAILED: RuntimeError: out of memory" in line for line in lines)
    text = (tmp_path / "comparison.md").read_text()
    assert "| fewer steps, 3 (failed) | 3 | 1 |" in text
    assert "fewer steps, 3: FAILED after 1 finished clips: RuntimeError: out of memory" in text


def test_a_speed_up_is_over_the_cases_that_were_finished(monkeypatch: pytest.MonkeyPatch) -> None:
    baseline = Results(Variant("baseline"), 4, [Trial("a", 0, (Run(10.0, 4),)), Trial("a", 1, (Run(90.0, 4),))])
    stopped = Results(Variant("v"), 4, [Trial("a", 0, (Run(5.0, 4),))], "RuntimeError: later")
    assert Comparison(baseline, [stopped]).speedup(stopped) == 2


def test_a_clip_of_another_shape_is_a_failed_variant() -> None:
    def generate(prompt: str, seed: int, steps: int) -> np.ndarray:
        return grey(prompt, seed, steps)[:steps]

    result = compare(generate, [fewer_steps(3)], prompts=["a"], steps=4)
    assert "the video has shape (3, 16, 16, 3) and the baseline (4, 16, 16, 3)" in result.variants[0].error


def test_without_its_baseline_a_comparison_stops_and_keeps_what_it_has(tmp_path: Path) -> None:
    def generate(prompt: str, seed: int, steps: int) -> np.ndarray:
        if seed == 1:
            raise RuntimeError("out of memory")
        return grey(prompt, seed, steps)

    with pytest.raises(ComparisonError, match=r"the baseline, 'baseline', failed at case 2 of 2: .*memory") as caught:
        compare(generate, [fewer_steps(2)], prompts=["a"], seeds=[0, 1], steps=4, output=tmp_path)
    assert len(caught.value.comparison.variants[0].trials) == 1
    data = json.loads((tmp_path / "comparison.json").read_text())
    assert [len(row["trials"]) for row in data["variants"]] == [1, 1]


def test_an_interrupt_keeps_what_was_finished(tmp_path: Path) -> None:
    def generate(prompt: str, seed: int, steps: int) -> np.ndarray:
        if steps == 2:
            raise KeyboardInterrupt
        return grey(prompt, seed, steps)

    with pytest.raises(KeyboardInterrupt):
        compare(generate, [fewer_steps(3), fewer_steps(2)], prompts=["a"], steps=4, output=tmp_path, warm_up_steps=0)
    data = json.loads((tmp_path / "comparison.json").read_text())
    assert [len(row["trials"]) for row in data["variants"]] == [1, 1, 0]


def test_official_pipeline_with_its_rival_of_equal_cost(t2v: Any) -> None:
    result = compare(official(t2v), [HALVED], prompts=[PROMPT], seeds=[3], steps=6, random_weights=True)
    halved, rival = result.variants
    report = halved.trials[0].report
    assert report is not None
    assert report["saved"]
    assert halved.predicted_speedup is not None
    assert rival.steps == round(6 / halved.predicted_speedup) < 6
    assert rival.variant.options is None
    assert "at the predicted cost of halved" in rival.variant.note
    assert result.facts["video"] == "9 frames 32x32"
    assert result.facts["weights"].startswith("random")

    plain = t2v.generate(
        PROMPT,
        size=(32, 32),
        frame_num=9,
        shift=12.0,
        guide_scale=(3.0, 4.0),
        sampling_steps=6,
        seed=3,
        offload_model=False,
    )
    assert result.baseline.trials[0].shape == (9, 32, 32, 3)
    again = compare(lambda *_: plain, [Variant("x")], prompts=["p"], steps=1, warm_up_steps=0)
    assert again.baseline.duplication_ratio == result.baseline.duplication_ratio  # the baseline is the plain pipeline
    assert "generate" not in vars(t2v)


def test_diffusers_pipeline_is_compared() -> None:
    generate = diffusers_generate(tiny_diffusers_t2v(), size=(32, 32), num_frames=9, max_sequence_length=TINY.text_len)
    result = compare(generate, [HALVED], prompts=[PROMPT], steps=4, equal_cost=False, warm_up_steps=0)
    assert not result.failures, result.failures[0].error
    quality = result.variants[0].trials[0].quality
    assert quality is not None
    assert quality.mse > 0
    assert result.facts["scheduler"] == "UniPCMultistepScheduler"
    assert result.facts["shift"] == 12.0


def trial(seconds: float, predicted: float | None = None, steps: int = 20) -> Trial:
    report = None if predicted is None else {"predicted_speedup": predicted}
    return Trial("a", 0, (Run(seconds, steps),), (5, 16, 16, 3), report=report)


def halved_results(name: str, seconds: float, predicted: float | None, steps: int = 20) -> Results:
    return Results(Variant(name, {}), steps, [trial(seconds, predicted, steps)])


def test_equal_cost_is_predicted_time_or_else_measured_time() -> None:
    def of(*rows: Results) -> tuple[list[int | None], list[str], Comparison]:
        comparison = Comparison(Results(Variant("baseline"), 20, [trial(100)]), list(rows))
        added = equal_cost.rivals(comparison)
        return [results.steps for results in added], [results.variant.note for results in added], comparison

    steps, notes, _ = of(halved_results("h", 80, 1.6))
    assert (steps, notes) == ([13], ["at the predicted cost of h (12.5 plain steps)"])
    steps, notes, _ = of(halved_results("h", 80, None))  # nothing predicted
    assert (steps, notes) == ([16], ["at the measured cost of h (16.0 plain steps)"])
    assert of(halved_results("h", 80, 2.0, steps=10))[0] == [5]
    steps, notes, _ = of(halved_results("g", 80, 1.62), halved_results("h", 80, 1.61))
    assert (len(steps), notes[0].count("predicted cost of")) == (1, 2)
    assert of(halved_results("g", 80, 1.6), halved_results("h", 80, 1.61))[0] == [13, 12]
    asked_for = Results(fewer_steps(13), 13, [trial(60, steps=13)])
    for _ in range(2):  # going on asks again
        steps, _, _ = of(asked_for, halved_results("h", 80, 1.6))
        assert (steps, asked_for.variant.note) == ([], "at the predicted cost of h (12.5 plain steps)")
    steps, _, comparison = of(halved_results("h", 120, None))
    assert steps == []
    assert "h costs as much as 24.0 plain steps (measured) of 20" in comparison.notes[0]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"variants": []}, "nothing to compare the baseline with"),
        ({"variants": [Variant("a"), Variant("a")]}, "several variants are called 'a'"),
        ({"variants": [Variant("baseline")]}, "several variants are called 'baseline'"),
        ({"prompts": "a cat"}, "needed: lists of one prompt"),
        ({"prompts": []}, "needed: lists of one prompt"),
        ({"seeds": [1, 1]}, "has an entry twice"),
        ({"steps": 0}, "steps=0"),
        ({"variants": [HALVED]}, "variant 'halved' has options for halfframe, but there is no pipeline"),
    ],
)
def test_what_cannot_be_compared_is_refused(changes: dict[str, Any], message: str) -> None:
    arguments: dict[str, Any] = {"variants": [fewer_steps(2)], "prompts": ["a"], "steps": 4, **changes}
    with pytest.raises(OptionError, match=message):
        compare(grey, arguments.pop("variants"), **arguments)


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"strategy": "self-dupilcate"}, StrategyError, "variant 'v': .*self-dupilcate"),
        ({"strategy": "self-duplicate", "nosie": "short"}, OptionError, "variant 'v': .*nosie"),
        ({"strategy": "self-duplicate:noise=shrt"}, OptionError, "variant 'v': .*shrt"),
    ],
)
def test_wrong_options_are_refused_before_anything_runs(
    t2v: Any, options: dict[str, Any], error: type[Exception], message: str
) -> None:
    def never(*_: object) -> None:
        raise AssertionError

    with pytest.raises(error, match=message):
        compare(never, [Variant("v", options)], pipe=t2v, prompts=["a"], steps=4)


def test_a_pipeline_that_generate_does_not_use_is_noticed(t2v: Any) -> None:
    result = compare(grey, [HALVED], pipe=t2v, prompts=["a"], steps=4, warm_up_steps=0)
    assert "the pipeline that was enabled did not run" in result.variants[0].error


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Variant(""), "empty name"),
        (lambda: fewer_steps(0), "steps=0; needed: 1 or more"),
        (lambda: official_generate(None, frame_num=48), "48 video frames is not 4n\\+1; use 45 or 49"),
        (lambda: diffusers_generate(None, size=(830, 480)), "size 830x480 does not fit"),
    ],
)
def test_unusable_values_are_refused(make: Callable[[], object], message: str) -> None:
    with pytest.raises(OptionError, match=message):
        make()


def test_a_generate_function_may_name_its_device() -> None:
    class Generate:
        device = torch.device("cpu")

        def __call__(self, prompt: str, seed: int, steps: int) -> torch.Tensor:
            return torch.zeros(3, 5, 16, 16)

    result = compare(Generate(), [fewer_steps(2)], prompts=["a"], steps=4)
    assert "threads" in result.facts["machine"]


def test_a_busy_machine_is_said() -> None:
    def waiting(prompt: str, seed: int, steps: int) -> np.ndarray:
        time.sleep(0.05 if steps == 2 else 0.0)
        return grey(prompt, seed, steps)

    result = compare(waiting, [fewer_steps(2)], prompts=["a"], steps=4, warm_up_steps=0)
    assert result.variants[0].runs[0].cpu_seconds is not None
    assert any("1 of 1 runs had the processor for less than 80 %" in note for note in result.variants[0].notes)
