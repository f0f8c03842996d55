"""How many steps stand for how many, and what a shortened run says of the whole."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest

import halfframe
from halfframe.compare import Run
from halfframe.compare.budget import Ahead, Budget, shortened
from halfframe.compare.runs import Passes, by_kind, choose_steps, means

from .made_up import (
    ALONE,
    BASELINE,
    CUT,
    FULL,
    HALF,
    HALVED,
    OWN,
    SCHEDULER,
    TEXT,
    VAE,
    Split,
    kinds,
    made_comparison,
    made_host,
    made_results,
    made_run,
    passes,
    plan,
    split,
)

RESULTS = Path(__file__).parents[2] / "benchmarks" / "results"


@pytest.mark.parametrize(
    ("largest", "chosen"),
    [
        (20, 20),
        (19, 17),  # 11 + 6 is nearer to 13 + 7 than 12 + 7
        (16, 14),
        (9, 9),  # 3, 6 and 9 steps are equally near: the longest run says most
        (8, 6),
        (5, 3),
        (2, 3),  # with fewer than 3 the low-noise expert never runs
    ],
)
def test_the_split_nearest_to_that_of_20_steps(largest: int, chosen: int) -> None:
    assert choose_steps(20, largest, split) == chosen


def test_an_expert_that_the_target_does_not_use_is_not_asked_for() -> None:
    assert split(2) == (2, 0)
    assert choose_steps(2, 1, split) == 1


@pytest.mark.parametrize("steps", [3, 7, 20])
@pytest.mark.parametrize("truncation", [(0, 0), (5, 3), (9, 3), (5, 30), (30, 0), (0, 2)])
def test_passes_are_those_that_halfframe_plans(steps: int, truncation: Split) -> None:
    guidance = halfframe.Guidance(skip_last=truncation[0], skip_last_high=truncation[1])
    counts = passes(split(steps), truncation)
    for strategy, frames in (("none", 13), ("self-duplicate", 7)):
        planned = by_kind(plan({"strategy": strategy, "guidance": guidance}, steps).to_dict())
        assert planned == {("high", frames): counts["high"], ("low", 13): counts["low"]}


@pytest.mark.parametrize(
    ("truncation", "steps", "expected"),
    [((5, 3), 20, (5, 3)), ((5, 3), 9, (2, 1)), ((5, 3), 3, (1, 1)), ((5, 0), 3, (1, 0))],
)
def test_truncation_shrinks_with_the_run_but_never_to_nothing(truncation: Split, steps: int, expected: Split) -> None:
    guidance = halfframe.Guidance(skip_last=truncation[0], skip_last_high=truncation[1])
    options = shortened({"strategy": "interleave", "guidance": guidance}, 20, steps)
    assert options is not None
    assert (options["guidance"].skip_last, options["guidance"].skip_last_high) == expected
    assert options["strategy"] == "interleave"
    assert shortened({"strategy": "interleave"}, 20, steps) == {"strategy": "interleave"}
    assert shortened(None, 20, steps) is None


@pytest.mark.parametrize("high", [FULL, HALF])
def test_a_short_run_stands_for_the_long_one(high: float) -> None:
    """With times that do not vary, extrapolation is exact: also from a truncated run to one truncated otherwise."""
    short, long = made_run(3, high, (1, 1)), made_run(20, high, (5, 3))
    assert short.seconds < long.seconds
    assert short.at(20, kinds(20, high, (5, 3)), means([short])) == pytest.approx(long.seconds)


def test_what_is_left_of_a_run() -> None:
    run = made_run(20, HALF)
    assert run.rest == pytest.approx(20 * SCHEDULER + VAE + TEXT + OWN)
    assert run.own == pytest.approx(OWN)


def test_the_ideal_has_the_passes_alone_and_the_baselines_rest() -> None:
    slow = made_run(20, HALF)
    late = tuple(dataclasses.replace(kind, seconds=99.0) for kind in slow.passes)
    comparison = made_comparison()
    comparison.variants = [made_results(HALVED, dataclasses.replace(slow, seconds=slow.seconds + 7.0, passes=late))]
    assert comparison.ideal_seconds(comparison.variants[0]) == pytest.approx(slow.seconds)


def test_runs_survive_json() -> None:
    run = made_run(3, HALF, peak_gpu_gib=70.0)
    assert Run.from_dict(json.loads(json.dumps(dataclasses.asdict(run)))) == run


@pytest.mark.parametrize("path", sorted(RESULTS.glob("*.json")), ids=lambda path: path.stem)
def test_the_kept_results_follow_from_the_runs_that_are_in_them(path: Path) -> None:
    """Files of an older form: what was measured, and the figures that were made of it then."""
    data = json.loads(path.read_text())
    for section, lines in zip(data["sections"], data["figures"], strict=True):
        assert section["trials"]["baseline"]["runs"]
        width, height = map(int, section["clip"].split("x")[1:])
        runs = {name: [older(run) for run in trials["runs"]] for name, trials in section["trials"].items()}
        known = means(run for group in runs.values() for run in group)
        for line in lines:
            own = runs.get(line["name"], runs["baseline"])
            if line["seconds"] is None or len(own) != 1:
                continue
            strategy, *cut = line["name"].removesuffix("+preload").split("+") if own is not runs["baseline"] else [None]
            asked: dict[str, Any] = {"strategy": None if not strategy or "fewer" in strategy else strategy}
            if strategy == "cfg" or cut:
                last, last_high = section["truncation"]
                asked["guidance"] = halfframe.Guidance(skip_last=last, skip_last_high=last_high)
                asked["strategy"] = None if strategy == "cfg" else strategy
            report = halfframe.plan(
                size=(width, height),
                frame_num=int(section["clip"].split("x")[0]),
                sampling_steps=line["steps"],
                shift=section["shift"],
                **asked,
            ).report
            found = own[0].seconds
            if own[0].steps != line["steps"]:
                found = own[0].at(line["steps"], by_kind(report.to_dict()), known | means(own))
            assert found == pytest.approx(line["seconds"], rel=1e-9), line["name"]


def older(run: dict[str, Any]) -> Run:
    parts = {"scheduler": run["solver"], "vae": run["vae"], "text": run["text"]}
    return Run(run["seconds"], run["steps"], None, tuple(Passes(**kind) for kind in run["forwards"]), parts)


@pytest.mark.parametrize(
    ("options", "steps", "high", "cut"),
    [
        ({"strategy": "self-duplicate"}, 20, HALF, (0, 0)),
        ({"strategy": "self-duplicate", "guidance": CUT}, 3, HALF, (1, 1)),
        ({"strategy": "none", "guidance": CUT}, 20, FULL, (5, 3)),
    ],
)
def test_estimates(options: dict[str, Any], steps: int, high: float, cut: Split) -> None:
    comparison = made_comparison()
    comparison.baseline.trials.clear()  # all that is known is what was timed alone
    found = made_results(dataclasses.replace(HALVED, options=options))
    expected = sum(ALONE[kind] * count for kind, count in kinds(steps, high, cut).items()) + VAE
    assert Ahead(made_host(), comparison, Budget(), 20, 1, True).estimate(found, steps) == pytest.approx(expected)


@pytest.mark.parametrize(("budget", "steps"), [(None, 20), (180.0, 20), (175.0, 17), (70.0, 9), (50.0, 6), (1.0, 3)])
def test_as_many_steps_as_there_is_time_for(budget: float | None, steps: int) -> None:
    """Baseline and one halved variant: 39 + 21 s at 9 steps; at 20 they take 83 + 44 s, and 10 plain steps 43 s."""
    comparison = made_comparison()
    comparison.baseline.trials.clear()
    comparison.variants, comparison.run_steps = [made_results(HALVED)], None
    said: list[str] = []
    Ahead(made_host(), comparison, Budget(budget), 20, 1, True).decide(said.append)
    assert comparison.run_steps == steps
    assert any("extrapolated to 20" in line for line in said) == (steps < 20)
    assert BASELINE is comparison.baseline.variant
