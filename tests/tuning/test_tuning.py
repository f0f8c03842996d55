"""Tuning on the real pipelines, of random weights: what is replayed, what is measured, what is kept."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import halfframe
from halfframe.compare.progress import Progress
from halfframe.compare.report_page import read_sheets
from halfframe.errors import OptionError
from halfframe.tuning import Measured, Tuning, tune, tune_cases
from halfframe.tuning.frontier import table
from halfframe.tuning.log import Log
from halfframe.tuning.replay import final_latents, shown_at
from halfframe.tuning.rivals import most_steps
from halfframe.tuning.table import Bench
from tests.tuning.hosts import diffusers, official

STEPS = 5


@pytest.mark.parametrize("make", [diffusers, official])
def test_a_replayed_run_is_the_plain_run_and_computes_only_its_end(make: Any) -> None:
    host = make()
    full = ["full"] * STEPS
    plain, record = final_latents(host.pipe, lambda: host(0, STEPS), full)
    assert host.passes == 2 * STEPS
    for start in range(1, STEPS):
        host.passes = 0
        replayed, _ = final_latents(host.pipe, lambda: host(0, STEPS), full, record, start)
        assert torch.equal(replayed, plain)
        assert host.passes == 2 * (STEPS - start)


@pytest.mark.parametrize("move", ["merge:2", "interleave:2", "reuse", "full+cond", "full+delta", "merge:2+delta"])
@pytest.mark.parametrize("make", [diffusers, official])
def test_a_move_after_a_replay_is_the_move_in_a_whole_run(make: Any, move: str) -> None:
    host = make()
    plain, record = final_latents(host.pipe, lambda: host(0, STEPS), ["full"] * STEPS)
    moves = ["full", move, *["full"] * (STEPS - 2)]
    whole, _ = final_latents(host.pipe, lambda: host(0, STEPS), moves)
    after, _ = final_latents(host.pipe, lambda: host(0, STEPS), moves, record, 1)
    assert torch.equal(whole, after)
    assert not torch.equal(whole, plain)


@pytest.mark.parametrize("move", ["full", "merge:2", "full+delta"])
def test_what_a_step_shows_is_known_from_that_step_alone(monkeypatch: pytest.MonkeyPatch, move: str) -> None:
    host = diffusers()
    scheduler, seen = host.pipe.scheduler, []
    step = type(scheduler).step

    def watched(self: Any, output: torch.Tensor, t: torch.Tensor, sample: torch.Tensor, **more: Any) -> Any:
        sigma = float(self.sigmas[len(seen)])
        seen.append(sample.float() - sigma * output.float())
        return step(self, output, t, sample, **more)

    _, record = final_latents(host.pipe, lambda: host(0, STEPS), ["full"] * STEPS)
    index, moves = 2, ["full", "full", move, *["full"] * (STEPS - 3)]
    host.passes = 0
    shown, _ = shown_at(host.pipe, lambda: host(0, STEPS), moves, record, index)
    assert host.passes == (1 if "+" in move else 2)  # none before the step, and none after it
    monkeypatch.setattr(type(scheduler), "step", watched)
    final_latents(host.pipe, lambda: host(0, STEPS), moves)
    torch.testing.assert_close(shown, seen[index], rtol=0, atol=1e-5)
    assert torch.equal(shown, record.shown[index]) == (move == "full")
    assert sorted(record.shown) == list(range(STEPS))


def test_frames_that_show_a_step_worse_than_a_reuse_are_not_run_to_the_end(monkeypatch: pytest.MonkeyPatch) -> None:
    host = diffusers()
    bench = Bench(host.pipe, host, 1, STEPS, Log(None, {}), Progress(lambda _: None, 0))
    moves = ("full", "merge:2", "reuse", "full+delta")
    left = bench.fits(STEPS).fit(2, "reuse", (0, 1)).residual
    for spoilt, kept in ((0.99 * left, True), (1.01 * left, False)):
        monkeypatch.setattr(Bench, "step_error", lambda *_, spoilt=spoilt: [spoilt])
        bench.log = Log(None, {})
        assert ("merge:2" in bench.row(STEPS, 2, moves)) == kept
        assert "merge:2" in bench.row(STEPS, 0, moves)  # nothing to reuse there
        assert {"reuse", "full+delta"} <= set(bench.row(STEPS, 2, moves))


def test_fitted_weights_are_least_squares_over_the_clips() -> None:
    host = diffusers()
    bench = Bench(host.pipe, host, 2, STEPS, Log(None, {}), Progress(lambda _: None, 0))
    records = [bench.record(case, STEPS) for case in range(2)]

    def column(values: list[torch.Tensor]) -> np.ndarray:
        return torch.cat([value.flatten() for value in values]).double().numpy()

    fits, index = bench.fits(STEPS), STEPS - 1
    shown = [column([record.shown[step] for record in records]) for step in range(STEPS)]
    known = [step for step in range(index) if step != 2]
    expected, *_ = np.linalg.lstsq(np.stack([shown[step] for step in known[-3:][::-1]], 1), shown[index], rcond=None)
    found = fits.fit(index, "reuse", known)
    mine = np.array(found.weights) @ np.stack([shown[step] for step in known[-3:][::-1]])
    best = expected @ np.stack([shown[step] for step in known[-3:][::-1]])
    assert np.mean((mine - shown[index]) ** 2) <= 1.01 * np.mean((best - shown[index]) ** 2) + 1e-9
    differences = [
        column([record.velocities[step][0] - record.velocities[step][1] for record in records]) for step in range(STEPS)
    ]
    index = fits.high - 1
    known = list(range(index))[-3:]
    found = fits.fit(index, "full+delta", known)
    expected, *_ = np.linalg.lstsq(np.stack([differences[step] for step in known[::-1]], 1), differences[index])
    best = expected @ np.stack([differences[step] for step in known[::-1]])
    assert found.residual <= 1.01 * np.mean((best - differences[index]) ** 2) + 1e-9


def test_nothing_is_decoded_and_the_pipe_is_as_before() -> None:
    host = diffusers()
    host(0, 1)  # diffusers itself keeps some of a call's arguments
    before = dict(vars(host.pipe)), type(host.pipe)
    host.pipe.vae.decode = None  # would fail if it were called
    final_latents(host.pipe, lambda: host(0, 2), ["full"] * 2)
    del host.pipe.vae.decode
    assert (dict(vars(host.pipe)).keys(), type(host.pipe)) == (before[0].keys(), before[1])
    assert halfframe.enable(host.pipe)
    halfframe.disable(host.pipe)


def test_a_call_of_another_pipeline_is_told() -> None:
    host, other = diffusers(), diffusers()
    with pytest.raises(halfframe.HalfframeError, match="needed: a call that runs the pipeline that is tuned"):
        final_latents(host.pipe, lambda: other(0, 2), ["full"] * 2)


def test_tuning_ends_in_recipes_that_cost_no_more_than_asked(tmp_path: Path) -> None:
    host = diffusers()
    arguments: dict[str, Any] = {
        "steps": STEPS,
        "budgets": (0.8, 0.5),
        "moves": ("merge:2", "reuse"),
        "schedules": (STEPS, 4),
        "runs": 3,
        "check": 1,
        "output": tmp_path,
    }
    found = tune_cases(host.pipe, host, 2, **arguments)
    assert all(chosen.cost <= share * STEPS + 1e-6 for chosen, share in zip(found.chosen, (0.8, 0.5), strict=True))
    assert len(found.checked) == 2
    assert all(len(checked.errors) == 1 for checked in found.checked)
    assert {rival.kind for rival in found.rivals} == {"fewer steps", "truncated guidance"}
    for checked in found.checked:  # what was measured is what the recipe does
        moves = checked.recipe.moves
        latents, _ = final_latents(host.pipe, lambda moves=moves: host(2, len(moves)), moves)
        plain, _ = final_latents(host.pipe, lambda: host(2, STEPS), ["full"] * STEPS)
        assert float((latents - plain).square().mean()) == pytest.approx(checked.error, rel=1e-6)

    recipes = sorted(tmp_path.glob("recipe-*.json"))
    assert recipes
    for path in recipes:
        recipe = halfframe.Recipe.load(path)
        assert recipe.measured["clips"] == 1
        with halfframe.enabled(host.pipe, path.as_posix()) as run:
            host(0, len(recipe.moves))
        assert run.report is not None
        assert run.report.moves == recipe.moves
    assert "| cost | measured |" in (tmp_path / "tuning.md").read_text()
    assert table(found) == (tmp_path / "tuning.md").read_text()
    [case] = read_sheets(tmp_path / "report.html")
    names = [clip["name"] for clip in case["clips"]]
    assert names[0] == f"plain, {STEPS} steps"
    assert {f"recipe, cost {checked.cost:.2f}" for checked in found.checked} <= set(names)
    assert case["frames"] == 17
    assert "latent PSNR to the plain 5 steps, dB" in (tmp_path / "report.html").read_text()

    # Called again it goes on from its log: nothing but the plain runs is computed anew.
    before = (tmp_path / "tuning.jsonl").read_text()
    host.passes = 0
    again = tune_cases(host.pipe, host, 2, **arguments)
    assert host.passes == 2 * STEPS * 2  # the plain clips of the search
    assert (tmp_path / "tuning.jsonl").read_text() == before
    assert len(again.chosen) == 2
    with pytest.raises(OptionError, match=r"other settings \(cases differ\)"):
        tune_cases(host.pipe, host, 1, **arguments)


def test_fewer_steps_are_chosen_where_no_recipe_is_nearer(monkeypatch: pytest.MonkeyPatch) -> None:
    def measured(bench: Bench, moves: Sequence[str]) -> list[float]:
        return [0.1 * (STEPS - len(moves)) if set(moves) == {"full"} else 0.9] * bench.cases

    host = diffusers()
    arguments: dict[str, Any] = {"steps": STEPS, "budgets": (0.9, 0.7, 0.5), "moves": ("reuse",), "schedules": (STEPS,)}
    arguments |= {"runs": 1, "strategies": ()}
    recipes = tune_cases(host.pipe, host, 1, **arguments).chosen
    assert all(len(chosen.recipe.moves) == STEPS and chosen.predicted is not None for chosen in recipes)
    monkeypatch.setattr(Bench, "measured", measured)
    found = tune_cases(host.pipe, host, 1, **arguments)
    assert [chosen.recipe.moves for chosen in found.chosen] == [("full",) * 4, ("full",) * 3, ("full",) * 2]
    assert [(chosen.cost, chosen.predicted) for chosen in found.chosen] == [(4, None), (3, None), (2, None)]


def test_the_most_steps_within_a_budget() -> None:
    assert [(one.moves, one.cost, one.kind) for one in most_steps(3.1, 5, guided=False)] == [
        (("full",) * 3, 3.0, "fewer steps")
    ]
    plain, quarter, half = most_steps(3.1, 5, guided=True)
    assert plain.moves == ("full",) * 3
    assert (quarter.moves, quarter.cost) == (("full", "full", "full+cond"), 2.5)
    assert (half.moves, half.cost) == (("full", "full", "full+cond", "full+cond"), 3.0)
    assert not most_steps(0.4, 5, guided=False)


def test_strategies_and_recipes_are_measured_beside(tmp_path: Path) -> None:
    host = diffusers()
    recipe = tmp_path / "mine.json"
    halfframe.Recipe(("full", "full+cond", "reuse", "full")).save(recipe)
    strategies = ("self-duplicate", str(recipe))
    arguments: dict[str, Any] = {
        "steps": STEPS,
        "budgets": (0.8,),
        "moves": ("reuse",),
        "schedules": (STEPS,),
        "runs": 1,
    }
    arguments |= {"strategies": strategies, "check": 1, "output": tmp_path / "tuned"}
    found = tune_cases(host.pipe, host, 1, **arguments)

    class Keep:
        @halfframe.hookimpl
        def halfframe_latents(self, latents: torch.Tensor) -> None:
            self.latents = latents.clone()

    def run(strategy: str | None, steps: int) -> torch.Tensor:
        keep = Keep()
        with halfframe.enabled(host.pipe, strategy, plugins=[keep]):
            host(1, steps)
        return keep.latents

    duplicated, mine = found.candidates
    assert [duplicated.name, mine.name] == list(strategies)
    with pytest.warns(halfframe.HalfframeWarning, match="nothing was skipped"):
        plain = run(None, STEPS)
    for candidate, steps in ((duplicated, STEPS), (mine, 4)):
        error = float((run(candidate.name, steps) - plain).square().mean())
        assert candidate.errors == pytest.approx([error], rel=1e-5)
    assert mine.cost == pytest.approx(2.5)  # passes over all frames alone: its cost does not depend on the clock
    assert 0 < duplicated.cost != STEPS

    rows = [line for line in (tmp_path / "tuned" / "tuning.md").read_text().splitlines() if "self-duplicate" in line]
    assert len(rows) == 1
    assert rows[0].startswith(f"| {duplicated.cost:.2f} | {found.decibels(duplicated.error):.1f} | - |")
    data = json.loads((tmp_path / "tuned" / "tuning.json").read_text())
    assert [given["name"] for given in data["strategies"]] == list(strategies)
    [case] = read_sheets(tmp_path / "tuned" / "report.html")
    assert f"self-duplicate, cost {duplicated.cost:.2f}" in [clip["name"] for clip in case["clips"]]
    assert "self-duplicate: cost in full steps" in (tmp_path / "tuned" / "report.html").read_text()

    host.passes = 0
    assert tune_cases(host.pipe, host, 1, **arguments).candidates == found.candidates
    assert host.passes == 2 * STEPS  # the plain clip of the search
    halfframe.Recipe(("full", "reuse", "full", "full")).save(recipe)  # other moves under the same name
    assert tune_cases(host.pipe, host, 1, **arguments).candidates[1].cost == pytest.approx(3.0)


def test_an_unknown_strategy_is_refused_before_anything_is_run() -> None:
    host = diffusers()
    with pytest.raises(halfframe.StrategyError, match="Did you mean 'interleave'"):
        tune_cases(host.pipe, host, 1, steps=2, strategies=("interleav",))
    assert not host.passes


def test_the_rival_of_equal_cost_is_the_nearest_and_of_those_the_best() -> None:
    def measured(cost: float, error: float, kind: str = "fewer steps") -> Measured:
        return Measured(halfframe.Recipe(("full",)), cost, None, error, (error,), kind)

    rivals = (measured(2, 0.3), measured(3, 0.2), measured(3, 0.1), measured(4, 0.05), measured(3.4, 0.01, "other"))
    tuning = Tuning(5, (), (), (), rivals, 1.0)
    costs = (1.0, 2.4, 2.5, 3.4, 3.5, 4.9)
    found = [tuning.rival(cost, "fewer steps") for cost in costs]
    assert [(one.cost, one.error) for one in found if one] == [
        (2, 0.3),
        (2, 0.3),
        (3, 0.1),
        (3, 0.1),
        (4, 0.05),
        (4, 0.05),
    ]
    assert tuning.rival(3.0, "truncated guidance") is None


def test_a_log_that_was_cut_off_is_read_up_to_there(tmp_path: Path) -> None:
    host = diffusers()
    arguments: dict[str, Any] = {"steps": 3, "budgets": (0.7,), "moves": ("reuse",), "schedules": (3,), "runs": 1}
    tune_cases(host.pipe, host, 1, output=tmp_path, **arguments)
    log = tmp_path / "tuning.jsonl"
    whole = log.read_text()
    log.write_text(whole[:-9])
    tune_cases(host.pipe, host, 1, output=tmp_path, **arguments)
    names = [json.loads(line)[0] for line in log.read_text().splitlines()[1:] if line.endswith("]")]
    assert names[-1] == json.loads(whole.splitlines()[-1])[0]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"steps": 0}, "steps must be an integer >= 1, got 0"),
        ({"budgets": (1.5,)}, r"budgets must be a list of shares of the full cost in 0..1, got \(1.5,\)"),
        ({"budgets": ("0.5",)}, r"list of shares of the full cost in 0..1, got \('0.5',\)"),
        ({"budgets": 0.5}, "list of shares of the full cost in 0..1, got 0.5"),
        ({"moves": "reuse"}, "moves must be a list of moves, such as .* got 'reuse'"),
        ({"moves": ("reuse:1.5,-0.5",)}, "'reuse:1.5,-0.5' has weights, but tune fits them .* give 'reuse'"),
        ({"moves": ("merge:2+delta:1",)}, r"'merge:2\+delta:1' has weights, .* give 'merge:2\+delta'"),
        ({"schedules": (2, 0)}, r"schedules must be a list of numbers of steps, integers >= 1, got \(2, 0\)"),
        ({"schedules": (2.0,)}, r"integers >= 1, got \(2.0,\)"),
        ({"schedules": 2}, "integers >= 1, got 2"),
        ({"moves": ("megre:2",)}, "Did you mean 'merge'"),
    ],
)
def test_unusable_arguments(change: dict[str, Any], message: str) -> None:
    host = diffusers()
    with pytest.raises(OptionError, match=message):
        tune_cases(host.pipe, host, 1, **{"steps": 2, **change})
    assert not host.passes


@pytest.mark.parametrize("make", [diffusers, official])
def test_tuning_by_prompts_and_seeds(make: Any, tmp_path: Path) -> None:
    pipe = make().pipe
    frames = {"num_frames": 17, "max_sequence_length": 8} if make is diffusers else {"frame_num": 17, "shift": 12.0}
    more = {} if make is diffusers else {"offload_model": False}
    said: list[str] = []
    found = tune(
        pipe,
        ["a cat", "a dog"],
        [3],
        steps=3,
        check_prompts=["a bird"],
        check_seeds=[4, 5],
        budgets=(0.7,),
        moves=("reuse",),
        runs=1,
        output=tmp_path,
        progress=said.append,
        size=(32, 32),
        **frames,
        **more,
    )
    assert len(found.chosen[0].errors) == 2
    assert len(found.checked[0].errors) == 2
    assert any("forward passes if nothing is known yet" in line for line in said)
    settings = json.loads((tmp_path / "tuning.jsonl").read_text().splitlines()[0])
    assert settings["prompts"] == ["a cat", "a dog"]
