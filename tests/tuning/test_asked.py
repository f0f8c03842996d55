"""What `tune` refuses, what it announces, and what it takes from a log."""

from __future__ import annotations

import json
import re
import statistics
from pathlib import Path
from typing import Any

import pytest
import torch

import halfframe
from halfframe.compare.progress import Progress
from halfframe.errors import OptionError
from halfframe.tuning import Measured, Tuning, tune, tune_cases
from halfframe.tuning.log import Log
from halfframe.tuning.replay import final_latents
from halfframe.tuning.table import Bench
from halfframe.tuning.tune import _save
from tests.tuning.hosts import Host, diffusers, official

SMALL: dict[str, Any] = {"steps": 3, "budgets": (0.9, 0.6), "moves": ("merge:2", "reuse"), "runs": 2, "strategies": ()}


def bench_of(host: Host, cases: int = 1, steps: int = 3, **more: Any) -> Bench:
    return Bench(host.pipe, host, cases, steps, Log(None, {}), Progress(lambda _: None, 0), **more)


def fixed_costs(monkeypatch: pytest.MonkeyPatch, **costs: float) -> None:
    """Costs that do not depend on the clock, of moves by their name without its number."""
    monkeypatch.setattr(Bench, "_seconds", lambda self, base: costs.get(base.partition(":")[0], 1.0))


@pytest.mark.parametrize("move", ["merge:2+cond", "full+delta", "full+cond"])
def test_leaving_out_a_pass_that_is_not_made_is_refused(move: str) -> None:
    host = diffusers(guidance_scale=1.0)
    with pytest.raises(OptionError, match=r"runs without guidance, one pass a step; give '[a-z:2]+' instead"):
        tune_cases(host.pipe, host, 1, **{**SMALL, "moves": ("reuse", move)})
    assert host.passes == SMALL["steps"]  # the plain run, which shows it


def test_a_budget_that_nothing_meets_is_refused_before_recipes_are_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    fixed_costs(monkeypatch, merge=0.4)
    host = diffusers()
    monkeypatch.setattr(Bench, "measured", lambda *_: pytest.fail("measured a recipe"))
    with pytest.raises(OptionError, match=r"no recipe costs 0.03 full steps or less, the cheapest is 0.20; give a la"):
        tune_cases(host.pipe, host, 1, **{**SMALL, "budgets": (0.9, 0.01)})


def test_schedules_given_twice_are_searched_once() -> None:
    host, said = diffusers(), list[str]()
    found = tune_cases(host.pipe, host, 1, **SMALL, schedules=(3, 2, 3), progress=said.append)
    assert [table.steps for table in found.tables] == [3, 2]
    assert "schedules of 3, 2 steps" in said[0]


@pytest.mark.parametrize("more", [{}, {"guidance_scale": 1.0}])
def test_no_more_forward_passes_are_made_than_announced(
    more: dict[str, Any], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    fixed_costs(monkeypatch, merge=0.05, interleave=0.04)  # cheap steps make forward passes as well as dear ones
    host, said = diffusers(**more), list[str]()
    halfframe.Recipe(("full", "reuse", "full", "full", "full")).save(tmp_path / "mine.json")
    arguments = {**SMALL, "moves": ("merge:2", "interleave:2"), "budgets": (0.5, 0.2), "runs": 6, "check": 1}
    arguments |= {"strategies": ("merge", str(tmp_path / "mine.json")), "schedules": (3, 4), "output": tmp_path / "out"}
    tune_cases(host.pipe, host, 1, **arguments, progress=said.append)
    announced = int(re.findall(r"up to ([\d,]+) forward passes", said[0])[0].replace(",", ""))
    assert 0.5 * announced < host.passes <= announced


def test_runs_that_choose_schedules_are_announced(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("halfframe.tuning.asked._MANY", 4)
    host, said, passes = diffusers(), list[str](), list[int]()

    def progress(line: str) -> None:
        said.append(line)
        passes.append(host.passes)

    tune_cases(host.pipe, host, 1, **{**SMALL, "steps": 4}, progress=progress)
    assert said[0] == "plain runs of 2 to 3 steps, to choose schedules: up to 10 forward passes"
    assert passes[:2] == [2 * 4, 2 * 4 + 10]
    assert said[1].startswith("schedules of 4, 3")


def test_moves_cost_what_they_take_here_also_where_their_runs_were_read_from_a_log() -> None:
    bench = bench_of(diffusers())
    costs = bench.costs(("full", "merge:2", "merge:2+cond", "interleave:4", "reuse"))
    assert {frames: len(seconds) >= 3 for frames, seconds in bench.seconds.items()} == {5: True, 3: True, 2: True}
    full, half, quarter = (statistics.median(bench.seconds[frames]) for frames in (5, 3, 2))
    assert costs["merge:2"] == pytest.approx(half / full)
    assert costs["merge:2+cond"] == pytest.approx(half / full / 2)
    assert costs["interleave:4"] == pytest.approx(quarter / full)
    assert (costs["full"], costs["reuse"]) == (1.0, 0.0)


@pytest.mark.parametrize("make", [diffusers, official])
def test_interrupted_anywhere_and_called_again_it_finds_the_same(
    make: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    fixed_costs(monkeypatch, merge=0.4)
    host = make()
    arguments = {**SMALL, "check": 1, "schedules": (3, 2)}
    whole = tune_cases(host.pipe, host, 1, **arguments, output=tmp_path / "whole")
    interrupted, again = 0, tmp_path / "again"
    while True:
        host.passes, host.stops_at = 0, 41
        try:
            found = tune_cases(host.pipe, host, 1, **arguments, output=again)
            break
        except KeyboardInterrupt:
            interrupted += 1
    assert interrupted >= 3
    assert (found.chosen, found.checked, found.rivals) == (whole.chosen, whole.checked, whole.rivals)
    assert [table.effects for table in found.tables] == [table.effects for table in whole.tables]


def test_a_log_cut_off_at_any_byte_is_gone_on_from(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    fixed_costs(monkeypatch)
    host = diffusers()
    arguments = {**SMALL, "steps": 2, "moves": ("reuse",), "runs": 1}
    whole = tune_cases(host.pipe, host, 1, **arguments, output=tmp_path)
    log = tmp_path / "tuning.jsonl"
    text = log.read_text()
    products = text.index('["products')
    cuts = [0, 5, text.index("\n"), text.index("\n") + 1, products, products + 30, len(text) - 1]
    for cut in (*cuts, *range(products + 60, len(text), len(text) // 12)):
        log.write_text(text[:cut])
        found = tune_cases(host.pipe, host, 1, **arguments, output=tmp_path)
        assert found.chosen == whole.chosen
        assert sorted(log.read_text().splitlines()) == sorted(text.splitlines())


@pytest.mark.parametrize("text", ["[1, 2]\n", "{}\n5\n", "nothing\n", '"a"\n'])
def test_a_file_that_is_no_log_is_refused(tmp_path: Path, text: str) -> None:
    (tmp_path / "log").write_text(text)
    with pytest.raises(OptionError, match="is not a log of halfframe tune"):
        Log(tmp_path / "log", {})


def test_a_log_of_another_model_is_refused(tmp_path: Path) -> None:
    host = diffusers()
    tune_cases(host.pipe, host, 1, **SMALL, output=tmp_path)
    host.passes = 0
    with torch.no_grad():
        for parameter in host.pipe.transformer.proj_out.parameters():
            parameter.mul_(-1.0)
    with pytest.raises(OptionError, match=r"log .* measured with another clip 1: .* or give another output folder"):
        tune_cases(host.pipe, host, 1, **SMALL, output=tmp_path)
    assert host.passes == 2 * SMALL["steps"]


def test_other_check_prompts_are_not_answered_from_the_log(tmp_path: Path) -> None:
    pipe = diffusers().pipe
    arguments: dict[str, Any] = {**SMALL, "num_frames": 17, "max_sequence_length": 8, "size": (32, 32)}
    tune(pipe, ["a cat"], check_prompts=["a dog"], output=tmp_path, **arguments)
    with pytest.raises(
        OptionError, match=r"check.jsonl was begun with other settings \(check_prompts differ\).* delete"
    ):
        tune(pipe, ["a cat"], check_prompts=["a bird"], output=tmp_path, **arguments)
    with pytest.raises(OptionError, match=r"check.jsonl was begun with other settings \(check_seeds differ\)"):
        tune(pipe, ["a cat"], check_prompts=["a dog"], check_seeds=[7], output=tmp_path, **arguments)


def test_a_call_that_gives_another_clip_each_time_is_refused() -> None:
    host, drawn = diffusers(), torch.Generator().manual_seed(0)
    host_call = host._call

    def call(case: int, steps: int) -> Any:
        return host_call(int(torch.randint(10**6, (), generator=drawn)), steps)

    with pytest.raises(OptionError, match="began with different noise; needed: a call that gives the same clip"):
        tune_cases(host.pipe, call, 1, **SMALL)
    assert host.passes == 2 * SMALL["steps"]


def test_a_plain_run_of_nan_is_told() -> None:
    host = diffusers()
    with torch.no_grad():
        host.pipe.transformer_2.proj_out.weight.fill_(float("nan"))
    with pytest.raises(
        halfframe.HalfframeError, match=r"plain run of clip 1 with 3 steps ends in latents that are NaN"
    ):
        tune_cases(host.pipe, host, 1, **SMALL)


def test_a_recipe_that_ends_in_nan_is_never_chosen(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    host = diffusers()

    def broken(pipe: Any, call: Any, moves: Any, *more: Any) -> Any:
        latents, record = final_latents(pipe, call, moves, *more)
        return (latents if set(moves) == {"full"} else latents * float("nan")), record

    monkeypatch.setattr("halfframe.tuning.table.final_latents", broken)
    found = tune_cases(host.pipe, host, 1, **SMALL, output=tmp_path)
    assert [chosen.recipe.moves for chosen in found.chosen] == [("full",) * 2, ("full",)]
    assert json.loads((tmp_path / "tuning.json").read_text())["rivals"]


def test_recipes_that_cost_nearly_the_same_are_files_of_their_own(tmp_path: Path) -> None:
    recipes = [halfframe.Recipe(moves) for moves in (("full", "reuse"), ("full", "merge:2"), ("full", "reuse"))]
    costs = (1.004, 1.001, 1.004)
    chosen = tuple(Measured(recipe, cost, 0.1, 0.1, (0.1,)) for recipe, cost in zip(recipes, costs, strict=True))
    _save(Tuning(2, (), chosen, (), (), 1.0), tmp_path)
    kept = {halfframe.Recipe.load(path).moves for path in tmp_path.glob("recipe-*.json")}
    assert kept == {("full", "reuse"), ("full", "merge:2")}
    assert (tmp_path / "recipe-0.50.json").exists()


def test_clips_of_the_check_keep_their_latents_alone() -> None:
    judge, bench = bench_of(diffusers(), replays=False), bench_of(diffusers())
    for one, kept in ((judge, False), (bench, True)):
        assert one.plain(0, 3).numel()
        assert one.guided()
        assert 0 < one.high(3) <= 3
        assert bool(one.record(0, 3).velocities) == bool(one.record(0, 3).shown) == kept
    for steps in (4, 5, 3):
        bench.plain(0, steps)
    assert {steps for _, steps in bench._records} == {3, 5}  # of schedules not asked for, the latest
