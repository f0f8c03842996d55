"""Sessions with timed parts and a budget: what is run, in what order, and what is left when time runs out."""

from __future__ import annotations

import dataclasses
import json
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch

import halfframe
from halfframe.compare import Budget, Comparison, Session, Variant, official_generate, session
from halfframe.compare.timing import Called
from halfframe.errors import OptionError

from .made_up import ALONE, BASELINE, CUT, FULL, HALF, HALVED, REPORT, TRUNCATED, VAE, made_host, made_run

BROKEN = Variant("own-noise", {"strategy": "own-noise"})
BOTH = Variant("both", {"strategy": "self-duplicate", "guidance": CUT})


@pytest.fixture
def made(monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, Any]]:
    """Runs that were made: steps and what `enabled` was given; rehearsals are not among them."""
    calls: list[tuple[int, Any]] = []

    def call(
        host: Any, case: Any, steps: int, options: Mapping[str, Any] | None, *, alone: Any = None, **_: Any
    ) -> Any:
        given = dict(options or {"strategy": "none"})
        guidance = given.get("guidance", halfframe.Guidance())
        cut = (guidance.skip_last, guidance.skip_last_high)
        run = made_run(steps, FULL if given["strategy"] == "none" else HALF, cut)
        if alone is not None:
            alone.update(ALONE)
            return Called(None, dataclasses.replace(run, seconds=run.seconds - run.rest + VAE), None, None)
        calls.append((steps, options))
        if given["strategy"] == "own-noise":
            raise RuntimeError("out of memory")
        return Called(None, run, None if options is None else dict(REPORT), None)

    monkeypatch.setattr(session, "call", call)
    return calls


def made_session(*variants: Variant, run_steps: int | None = None, until: float | None = None, **more: Any) -> Session:
    budget = Budget(until=until, run_steps=run_steps)
    given = {"steps": 20, "quality": False, "spots": True, "budget": budget, **more}
    return Session(made_host(), [BASELINE, *variants], [("a", 0)], **given)


def test_fewer_steps_come_after_the_variants(made: list[tuple[int, Any]], tmp_path: Path) -> None:
    comparison = made_session(HALVED, TRUNCATED, output=tmp_path).run()
    assert [steps for steps, _ in made] == [20, 20, 20, 11, 16]
    assert not comparison.failures
    assert sorted(path.name for path in tmp_path.iterdir()) == ["comparison.json", "comparison.md", "report.html"]


def test_variants_take_turns(made: list[tuple[int, Any]]) -> None:
    comparison = made_session(HALVED, repeat=2).run()
    assert [(steps, options is not None) for steps, options in made] == [(20, False), (20, True), (11, False)] * 2
    assert [len(results.runs) for results in comparison.rows] == [2, 2, 2]


def test_every_run_is_written(made: list[tuple[int, Any]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    writes: list[int] = []

    def tables(self: Any, comparison: Comparison) -> None:
        writes.append(sum(len(results.runs) for results in comparison.rows))

    monkeypatch.setattr("halfframe.compare.output.Writer.tables", tables)
    made_session(HALVED, TRUNCATED, output=tmp_path).run()
    assert writes == [1, 2, 3, 4, 5, 5]


def test_a_shortened_run_needs_no_runs_with_fewer_steps(made: list[tuple[int, Any]]) -> None:
    comparison = made_session(BOTH, run_steps=3, repeat=2).run()
    truncated = {"strategy": "self-duplicate", "guidance": halfframe.Guidance(skip_last=1, skip_last_high=1)}
    assert made == [(3, None), (3, truncated)] * 2
    *_, rival = comparison.variants
    assert (rival.variant.options, rival.extrapolated, len(rival.runs)) == (None, True, 2)
    assert comparison.seconds(rival) == pytest.approx(made_run(rival.steps or 0).seconds)


def test_going_on_runs_what_is_missing(made: list[tuple[int, Any]], tmp_path: Path) -> None:
    before = made_session(HALVED, run_steps=3, output=tmp_path).run()
    made.clear()
    after = made_session(HALVED, TRUNCATED, output=tmp_path, resume=True).run()
    assert [(steps, options["strategy"]) for steps, options in made] == [(3, "none")]
    names = ["baseline", "self-duplicate", "cfg", "fewer steps, 11", "fewer steps, 16"]
    assert [results.variant.name for results in after.rows] == names
    assert [after.seconds(results) for results in after.rows[:2]] == [before.seconds(row) for row in before.rows[:2]]
    made.clear()
    again = made_session(HALVED, TRUNCATED, output=tmp_path, resume=True, repeat=2).run()
    assert [steps for steps, _ in made] == [3, 3, 3]
    assert {len(results.runs) for results in again.rows} == {2}
    assert len(list(tmp_path.iterdir())) == 3


def test_steps_once_decided_stay(made: list[tuple[int, Any]], tmp_path: Path) -> None:
    made_session(HALVED, run_steps=3, output=tmp_path).run()
    with pytest.raises(OptionError, match="are of runs of 3 steps, not of 6"):
        made_session(HALVED, TRUNCATED, run_steps=6, output=tmp_path, resume=True).run()
    with pytest.raises(OptionError, match=r"other settings .*variant 'self-duplicate'"):
        made_session(TRUNCATED, output=tmp_path, resume=True)


def test_a_variant_that_fails_is_noted_and_tried_again_by_the_next_call(
    made: list[tuple[int, Any]], tmp_path: Path
) -> None:
    comparison = made_session(BROKEN, HALVED, run_steps=3, output=tmp_path).run()
    assert [results.error for results in comparison.failures] == ["RuntimeError: out of memory"]
    assert len(comparison.variants[1].runs) == 1
    made.clear()
    made_session(BROKEN, HALVED, output=tmp_path, resume=True).run()
    assert [options["strategy"] for _, options in made] == ["own-noise"]


def test_nothing_is_begun_that_will_not_be_over_in_time(made: list[tuple[int, Any]], tmp_path: Path) -> None:
    comparison = made_session(HALVED, until=time.monotonic() + 50.0, output=tmp_path).run()
    assert made == []
    assert "no time was left for baseline, self-duplicate; go on with resume." in comparison.notes
    made_session(HALVED, output=tmp_path, resume=True).run()
    assert [steps for steps, _ in made] == [20, 20, 11]


def test_passes_that_were_not_planned_fail_the_variant(
    made: list[tuple[int, Any]], monkeypatch: pytest.MonkeyPatch
) -> None:
    real = session.call

    def call(host: Any, case: Any, steps: int, options: Any, **more: Any) -> Called:
        return real(host, case, steps, options and {"strategy": "none"}, **more)

    monkeypatch.setattr(session, "call", call)
    (failed,) = made_session(HALVED).run().failures
    assert "the forward passes made were {('high', 13): 26, ('low', 13): 14}, those planned" in failed.error


def test_a_budget_needs_parts() -> None:
    with pytest.raises(OptionError, match="a budget needs spots=True"):
        made_session(HALVED, spots=False)


def test_a_shortened_session_on_a_real_pipeline(t2v: Any, tmp_path: Path) -> None:
    """On a real pipeline: parts that are timed, alone and in a run, and a recipe, which has its own number of steps."""
    seen: dict[str, torch.Tensor] = {}

    def check(name: str, latents: torch.Tensor) -> float:
        seen[name] = latents
        return 0.25

    recipe = halfframe.Recipe(("full", "merge:2", "full", "full", "full", "reuse"))
    host = official_generate(t2v, size=(32, 32), frame_num=17, shift=12.0, guide_scale=(3.0, 4.0), offload_model=False)
    variants = [BASELINE, Variant("merge", {"strategy": "merge"}), Variant("recipe", {"strategy": recipe})]
    given: dict[str, Any] = {"steps": 6, "quality": False, "spots": True, "output": tmp_path, "check": check}
    comparison = Session(host, variants, [("a", 0)], budget=Budget(run_steps=3), **given).run()
    merged, composed, *_ = comparison.variants
    assert set(comparison.alone) == {("high", 5), ("low", 5), ("high", 3)}
    assert min(comparison.alone.values()) > 0
    assert [(kind.kind, kind.count) for kind in merged.runs[0].passes] == [(("high", 3), 4), (("low", 5), 2)]
    assert merged.runs[0].off_by == 0.25
    assert seen["baseline 3 steps"].shape == (16, 5, 4, 4)
    assert merged.runs[0].own > 0
    assert min(merged.runs[0].parts.values()) > 0
    assert composed.trials is comparison.baseline.trials  # of 6 steps, so it cannot be run in 3
    assert comparison.seconds(composed) == pytest.approx(comparison.ideal_seconds(composed), rel=1.0)
    assert "- recipe: not run: composed of single forward passes" in (tmp_path / "comparison.md").read_text()
    assert not any("forward" in vars(model) for model in (t2v.high_noise_model, t2v.low_noise_model))
    assert not any("forward" in vars(block) for block in t2v.high_noise_model.blocks)
    data = json.loads((tmp_path / "comparison.json").read_text())
    assert [one["latent_frames"] for one in data["alone"]] == [5, 5, 3]


def test_a_rehearsal_computes_what_a_run_computes(t2v: Any) -> None:
    """Each kind of pass of a plain run and of a halved one, though most are made without their blocks."""
    host = official_generate(t2v, size=(32, 32), frame_num=17, shift=12.0, offload_model=False)
    counted: list[int] = []
    handle = t2v.high_noise_model.blocks[0].register_forward_hook(lambda *_: counted.append(1))
    alone: dict[tuple[str, int], float] = {}
    for options in (None, {"strategy": "interleave"}):
        rehearsed = session.call(host, ("a", 0), 6, options, spots=True, alone=alone)
        run = session.call(host, ("a", 0), 6, options, spots=True)
        kinds = [[(kind.kind, kind.count) for kind in one.run.passes] for one in (rehearsed, run)]
        assert kinds[0] == kinds[1]
    handle.remove()
    assert set(alone) == {("high", 5), ("low", 5), ("high", 3)}
