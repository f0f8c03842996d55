"""What the measurements come to."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest

from _output import comparison, markdown, rivals
from _results import Results, Section, Trials
from _steps import Forwards

from .made_up import FULL, HALF, OWN, made_run, made_section

REPORT = {"note": "", "strategy": "self-duplicate", "predicted_speedup": 1.5}


def full_section() -> Section:
    return made_section(
        20,
        baseline=Trials([made_run(20)], steps=20),
        self_duplicate=Trials([made_run(20, HALF, report=REPORT)], steps=20),
        cfg=Trials([made_run(20, truncation=(5, 3), report=REPORT)], steps=20),
    )


def short_section() -> Section:
    return made_section(
        3,
        baseline=Trials([made_run(3)], steps=20),
        self_duplicate=Trials([made_run(3, HALF, report=REPORT)], steps=20),
        cfg=Trials([made_run(3, truncation=(1, 1), report=REPORT)], steps=20),
    )


def table(section: Section) -> list[dict[str, str]]:
    results = Results(None, {"device": "a GPU"}, "command")
    results.sections.append(section)
    rows = [line.split("|")[1:-1] for line in markdown(results).splitlines() if line.startswith("|")]
    head, _, *body = [[cell.strip() for cell in row] for row in rows]
    return [dict(zip(head, row, strict=True)) for row in body]


@pytest.mark.parametrize("make", [full_section, short_section])
def test_extrapolated_or_not_the_figures_are_the_same(make: Any) -> None:
    baseline, half, cfg, *fewer = comparison(make())
    plain = made_run(20).seconds
    assert baseline.seconds == pytest.approx(plain)
    assert half.speedup == pytest.approx(plain / made_run(20, HALF).seconds)
    assert cfg.speedup == pytest.approx(plain / made_run(20, truncation=(5, 3)).seconds)
    assert [line.share_of_ideal for line in (baseline, half, cfg, *fewer)] == pytest.approx([1.0] * (3 + len(fewer)))
    assert half.overhead == pytest.approx(0.0, abs=1e-9)
    assert baseline.overhead is None


def test_fewer_steps_stand_beside_the_variants_that_cost_the_same() -> None:
    """A plain step is 4.25 s, a halved one 1.25 s: 13 * 1.25 + 7 * 4.25 = 46 s are 11 steps; 8 forwards less are 16."""
    assert rivals(full_section()) == {16: ["cfg"], 11: ["self-duplicate"]}
    assert [line.name for line in comparison(full_section())] == ["baseline", "self-duplicate", "cfg"]  # not run yet
    *_, last = comparison(short_section())
    assert (last.name, last.steps, last.extrapolated) == ("fewer steps, 11", 11, True)
    assert last.seconds == pytest.approx(made_run(11).seconds)
    assert last.note == "at the cost of self-duplicate"


def test_fewer_steps_that_were_run_are_shown_as_measured() -> None:
    section = full_section()
    section.trials["fewer steps, 11"] = Trials([made_run(11)], steps=11)
    *_, last = comparison(section)
    assert (last.steps, last.extrapolated) == (11, False)
    assert last.seconds == pytest.approx(made_run(11).seconds)


def test_extrapolated_figures_are_marked_wherever_they_are_shown() -> None:
    marked = ("seconds", "speed-up", "forwards allow", "share of that")
    for row in table(short_section()):
        assert all(row[column].endswith("(ext.)") for column in marked), row
    assert not any("(ext.)" in cell for row in table(full_section()) for cell in row.values())


def test_seconds_are_medians_and_memory_is_the_most() -> None:
    section = full_section()
    run = made_run(20, peak_host_gib=1.0)
    runs = [dataclasses.replace(run, seconds=run.seconds + more, peak_gpu_gib=60.0 + more) for more in (0.0, 9.0, 1.0)]
    section.trials["baseline"].runs[:] = runs
    line, *_ = comparison(section)
    assert line.seconds == pytest.approx(run.seconds + 1.0)
    assert line.peak_gpu_gib == 69.0
    assert line.runs == 3


def test_overhead_is_what_the_loop_takes_longer_and_enabling() -> None:
    section = full_section()
    run = section.trials["self-duplicate"].runs[0]
    slower = dataclasses.replace(run, seconds=run.seconds + 2 * OWN, enabling=OWN)
    section.trials["self-duplicate"].runs[:] = [slower]
    _, half, *_ = comparison(section)
    assert half.overhead == pytest.approx(3 * OWN / slower.seconds)


def test_notes_say_what_went_wrong() -> None:
    section = full_section()
    nothing = {**REPORT, "note": "no timestep reaches the boundary"}
    section.trials["self-duplicate"].runs[:] = [made_run(20, report=nothing, finite=False, off_by=0.5)]
    section.trials["cfg"].runs.clear()
    section.trials["cfg"].error = "FAILED: OutOfMemoryError"
    notes = {row["variant"]: row["note"] for row in table(section)}
    assert "nothing was skipped in time: no timestep reaches the boundary" in notes["self-duplicate"]
    assert "latents off by 5.0e-01" in notes["self-duplicate"]
    assert "not finite" in notes["self-duplicate"]
    assert notes["cfg"] == "FAILED: OutOfMemoryError"


def test_truncation_alone_was_not_asked_to_halve() -> None:
    section = full_section()
    report = {"note": "no strategy was asked for", "strategy": "full", "predicted_speedup": 1.2}
    section.trials["cfg"].runs[:] = [made_run(20, truncation=(5, 3), report=report)]
    assert {row["variant"]: row["note"] for row in table(section)}["cfg"] == ""


def test_a_window_is_extrapolated_by_kind_of_forward() -> None:
    """merge:until=1,stride=4: one merged step of 13, not one of the two that a run of 3 steps has."""
    quarter = 0.25
    name = "merge:until=1,stride=4"
    section = made_section(3, baseline=Trials([made_run(3)], steps=20))
    assert section.kinds(name, 20) == {("high", 4): 2, ("high", 13): 24, ("low", 13): 14}
    assert section.kinds(name, 3) == {("high", 4): 2, ("high", 13): 2, ("low", 13): 2}
    plain = made_run(3)
    forwards = (
        Forwards("high", 4, 2, 2 * quarter),
        Forwards("high", 13, 2, 2 * FULL),
        Forwards("low", 13, 2, 2 * FULL),
    )
    saved = 2 * (FULL - quarter)
    run = dataclasses.replace(plain, seconds=plain.seconds - saved, forwards=forwards, report=REPORT)
    section.alone[4] = quarter
    section.trials[name] = Trials([run], steps=20)
    _, line, *_ = comparison(section)
    assert line.seconds == pytest.approx(made_run(20).seconds - saved)
    assert line.speedup == pytest.approx(1.04, abs=0.01)
    assert plain.seconds / run.seconds > 1.2  # what a mean over all high-noise forwards would come near to


def test_what_was_never_timed_is_not_extrapolated() -> None:
    section = made_section(3, baseline=Trials([made_run(3)], steps=20))
    section.trials["merge:full_start=2"] = Trials([made_run(3, report=REPORT)], steps=20)  # 3 steps have no merged one
    row = table(section)[1]
    assert row["seconds"] == ""
    assert "no forward of the high-noise expert on 7 latent frames was timed" in row["note"]
    assert rivals(section) == {}
