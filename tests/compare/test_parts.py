"""What comparisons with timed parts come to, measured and extrapolated."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest

import halfframe
from halfframe.compare import Comparison, Variant, equal_cost, markdown
from halfframe.compare.runs import Passes, by_kind
from halfframe.compare.summary import html_page, to_dict

from .made_up import (
    FULL,
    HALF,
    HALVED,
    OWN,
    REPORT,
    TRUNCATED,
    made_comparison,
    made_results,
    made_rival,
    made_run,
    plan,
)


def rows(comparison: Comparison) -> dict[str, dict[str, Any]]:
    return {row["name"]: row for row in to_dict(comparison)["variants"]}


def table(comparison: Comparison) -> dict[str, dict[str, str]]:
    lines = [line.split("|")[1:-1] for line in markdown(comparison).splitlines() if line.startswith("|")]
    head, _, *body = [[cell.strip() for cell in line] for line in lines]
    return {row[0]: dict(zip(head, row, strict=True)) for row in body}


@pytest.mark.parametrize("run_steps", [20, 3])
def test_extrapolated_or_not_the_figures_are_the_same(run_steps: int) -> None:
    comparison = made_comparison(run_steps)
    baseline, half, cfg = (rows(comparison)[row.variant.name] for row in comparison.rows)
    plain = made_run(20).seconds
    assert baseline["seconds"] == pytest.approx(plain)
    assert half["speedup"] == pytest.approx(plain / made_run(20, HALF).seconds)
    assert cfg["speedup"] == pytest.approx(plain / made_run(20, truncation=(5, 3)).seconds)
    assert [row["share_of_ideal"] for row in (baseline, half, cfg)] == pytest.approx([1.0] * 3)
    assert half["overhead"] == pytest.approx(0.0, abs=1e-9)
    assert baseline["overhead"] is None
    assert [row["extrapolated"] for row in (baseline, half, cfg)] == [run_steps != 20] * 3


@pytest.mark.parametrize("run_steps", [20, 3])
def test_fewer_steps_stand_beside_the_variants_that_cost_the_same(run_steps: int) -> None:
    """A plain step is 4.25 s, a halved one 1.25 s: 13 * 1.25 + 7 * 4.25 = 46 s are 11 steps; 8 passes less are 16."""
    comparison = made_comparison(run_steps)
    added = equal_cost.rivals(comparison)
    assert [results.steps for results in added] == [11, 16]
    assert added[0].variant.note == "at the measured cost of self-duplicate (10.8 plain steps)"
    assert equal_cost.rivals(comparison) == []  # going on asks again


def test_extrapolated_fewer_steps_are_the_baselines_runs() -> None:
    comparison = made_comparison(3)
    comparison.variants.append(made_rival(11, *comparison.baseline.runs))
    row = rows(comparison)["fewer steps, 11"]
    assert (row["steps"], row["extrapolated"]) == (11, True)
    assert row["seconds"] == pytest.approx(made_run(11).seconds)
    assert row["share_of_ideal"] == pytest.approx(1.0)


def test_fewer_steps_that_were_run_are_shown_as_measured() -> None:
    comparison = made_comparison()
    comparison.variants.append(made_rival(11, made_run(11)))
    row = rows(comparison)["fewer steps, 11"]
    assert (row["extrapolated"], row["seconds"]) == (False, made_run(11).seconds)


def test_extrapolated_figures_are_marked_wherever_they_are_shown() -> None:
    marked = ("seconds", "speed-up", "passes allow", "share of that")
    for row in table(made_comparison(3)).values():
        assert all(row[column].endswith("(ext.)") for column in marked), row
    assert "(ext.)" not in markdown(made_comparison())
    assert "(ext.): extrapolated to the steps named from runs of 3 steps" in markdown(made_comparison(3))


def test_seconds_are_medians_and_memory_is_the_most() -> None:
    comparison, run = made_comparison(), made_run(20, peak_host_gib=1.0)
    runs = [dataclasses.replace(run, seconds=run.seconds + more, peak_gpu_gib=60.0 + more) for more in (0.0, 9.0, 1.0)]
    comparison.baseline.trials[0] = dataclasses.replace(comparison.baseline.trials[0], runs=tuple(runs))
    row = rows(comparison)["baseline"]
    assert row["seconds"] == pytest.approx(run.seconds + 1.0)
    assert row["peak_gpu_gib"] == 69.0
    assert table(comparison)["baseline"]["peak host GiB"] == "1.0"


def test_overhead_is_what_the_loop_takes_longer_and_enabling() -> None:
    comparison, run = made_comparison(), made_run(20, HALF)
    slower = dataclasses.replace(run, seconds=run.seconds + 2 * OWN, enabling=OWN)
    comparison.variants = [made_results(HALVED, slower)]
    assert rows(comparison)["self-duplicate"]["overhead"] == pytest.approx(3 * OWN / slower.seconds)


def test_notes_say_what_went_wrong() -> None:
    nothing = {**REPORT, "note": "no timestep reaches the boundary"}
    comparison = made_comparison()
    comparison.variants[0] = made_results(HALVED, made_run(20, finite=False, off_by=0.5), report=nothing)
    notes = " ".join(comparison.variants[0].notes)
    assert "nothing was skipped in time: no timestep reaches the boundary" in notes
    assert "latents off by 5.0e-01" in notes
    assert "not finite" in notes


@pytest.mark.parametrize("report", [{"strategy": "full"}, {"guidance_truncated": True}])
def test_truncation_alone_was_not_asked_to_halve(report: dict[str, Any]) -> None:
    cut = made_run(20, truncation=(5, 3))
    assert made_results(TRUNCATED, cut, report={**REPORT, "note": "no strategy was asked for", **report}).notes == []


QUARTER = 0.25
WINDOW = Variant("merge:until=1,stride=4", {"strategy": "merge:until=1,stride=4"})


def test_a_window_is_extrapolated_by_kind_of_pass() -> None:
    """merge:until=1,stride=4: one merged step of 13, not one of the two that a run of 3 steps has."""
    assert by_kind(plan(WINDOW.options, 20).to_dict()) == {("high", 4): 2, ("high", 13): 24, ("low", 13): 14}
    assert by_kind(plan(WINDOW.options, 3).to_dict()) == {("high", 4): 2, ("high", 13): 2, ("low", 13): 2}
    comparison, plain = made_comparison(3), made_run(3)
    passes = (Passes("high", 4, 2, 2 * QUARTER), Passes("high", 13, 2, 2 * FULL), Passes("low", 13, 2, 2 * FULL))
    saved = 2 * (FULL - QUARTER)
    run = dataclasses.replace(plain, seconds=plain.seconds - saved, passes=passes)
    comparison.variants = [made_results(WINDOW, run)]
    row = rows(comparison)[WINDOW.name]
    assert row["seconds"] == pytest.approx(made_run(20).seconds - saved)
    assert row["speedup"] == pytest.approx(1.04, abs=0.01)
    assert row["ideal_seconds"] is None  # such a pass was not timed alone
    assert plain.seconds / run.seconds > 1.2  # what a mean over all high-noise passes would come near to
    assert row["predicted_speedup"] == pytest.approx(plan(WINDOW.options, 20).predicted_speedup)  # of all 20 steps


LATE = Variant("merge:full_start=2", {"strategy": "merge:full_start=2"})


def test_what_no_run_met_is_taken_from_passes_alone_and_said() -> None:
    comparison = made_comparison(3)
    comparison.variants = [made_results(LATE, made_run(3))]  # 3 steps have no merged one
    row = rows(comparison)[LATE.name]
    expected = made_run(20, HALF).seconds + 4 * (FULL - HALF)
    assert (row["seconds"], row["ideal_seconds"]) == (pytest.approx(expected), pytest.approx(expected))
    assert "those timed alone stand in: the high-noise expert's on 7 latent frames" in markdown(comparison)


def test_what_was_never_timed_is_not_extrapolated() -> None:
    comparison = made_comparison(3)
    comparison.variants = [made_results(LATE, made_run(3))]
    del comparison.alone["high", 7]
    row = rows(comparison)[LATE.name]
    assert (row["seconds"], row["speedup"], row["share_of_ideal"]) == (None, None, None)
    missing = "no run has such forward passes, so it is not extrapolated: the high-noise expert's on 7 latent frames"
    assert missing in markdown(comparison)
    assert equal_cost.rivals(comparison) == []


def test_a_recipe_is_extrapolated_by_kind_of_pass() -> None:
    """13 halved steps of which 3 are reused, composed: the baseline's run has no reduced pass."""
    moves = ["full", *["merge:2", "reuse"] * 3, *["full"] * 13]
    variant = Variant("recipe", {"strategy": halfframe.Recipe(tuple(moves))})
    comparison = made_comparison(3)
    comparison.variants = [made_results(variant)]
    comparison.variants[0].trials = comparison.baseline.trials
    plain = made_run(20).seconds
    expected = plain - 6 * (FULL - HALF) - 6 * FULL
    assert rows(comparison)["recipe"]["speedup"] == pytest.approx(plain / expected)


def test_the_page_has_a_bar_for_every_variant_that_was_timed() -> None:
    page = html_page(made_comparison(3), [])
    assert page.count("<dd>") == 3
    assert f"{made_run(20).seconds:.2f} s, 1.00x (ext.)" in page
    assert "<dt>self-duplicate</dt>" in page
