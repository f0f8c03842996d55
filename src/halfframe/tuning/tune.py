"""`tune`: measure moves, search recipes for each budget, and compare them with fewer steps."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from halfframe.compare.generators import diffusers_generate, official_generate
from halfframe.compare.progress import Progress
from halfframe.plugins.strategies import DEFAULT_STRATEGY, resolve_strategy
from halfframe.strategies.recipe import Recipe
from halfframe.tuning.asked import checked, most_passes, schedules_of, tried
from halfframe.tuning.clips import clips_of
from halfframe.tuning.frontier import html_page, table, to_dict, write_json
from halfframe.tuning.log import Log
from halfframe.tuning.measured import Search, measure
from halfframe.tuning.result import Measured, Tuning
from halfframe.tuning.rivals import fewer_steps
from halfframe.tuning.table import Bench, Call

__all__ = ["BUDGETS", "MOVES", "tune", "tune_cases"]

_logger = logging.getLogger(__name__)

BUDGETS = (0.9, 0.75, 0.6, 0.45)
"""Shares of the full cost for which recipes are made."""

MOVES = ("merge:2", "merge:3", "merge:4", "interleave:2", "reuse")
"""Moves that are tried at every step. On guided steps, moves with a forward pass are also tried with ``+cond`` and
``+delta``."""


def tune(
    pipe: Any,
    prompts: Sequence[str],
    seeds: Sequence[int] = (0,),
    *,
    steps: int,
    check_prompts: Sequence[str] = (),
    check_seeds: Sequence[int] = (0,),
    budgets: Sequence[float] = BUDGETS,
    moves: Sequence[str] = MOVES,
    schedules: Sequence[int] | None = None,
    runs: int = 6,
    strategies: Sequence[str] = (DEFAULT_STRATEGY,),
    output: str | Path | None = None,
    progress: Callable[[str], None] = _logger.info,
    **arguments: Any,
) -> Tuning:
    """Measure on your own weights what each step can skip, and make recipes from it.

    It works for guided and distilled models and for image-to-video, with the official pipelines and diffusers'.
    `tune_cases` describes what is measured.

    Args:
        pipe: a pipeline that `halfframe.enabled` serves, LoRAs loaded.
        prompts: prompts of the search clips, each with every seed.
        seeds: seeds of the search clips.
        steps: number of steps of the schedule that the recipes replace.
        check_prompts: prompts of the clips on which the recipes are measured; the search does not see them.
        check_seeds: seeds of these clips.
        budgets: shares of the full cost, 0..1, one recipe for each.
        moves: the moves to try at each step, see `MOVES`.
        schedules: numbers of steps that recipes may have; by default `steps`, and from 12 on those of about 0.85, 0.7
            and 0.5 of it that are nearer to the plain run than every smaller number.
        runs: how many recipes are measured for each budget.
        strategies: strategies and recipe paths, spelt as for `halfframe.enabled`, to compare with the recipes.
        output: folder for the log, the recipes and the table; the same call continues from the log.
        progress: called with one line of text at a time; by default the lines are logged.
        **arguments: arguments of ``pipe.generate`` or of the pipeline's call, such as `size`, `frame_num`,
            `num_frames`, `image`.

    Raises:
        OptionError: unusable numbers or moves, or the log has other settings.
        StrategyError: one of the strategies is unknown.
    """
    generate = (official_generate if hasattr(pipe, "generate") else diffusers_generate)(pipe, **arguments)
    search, judges = (
        [(prompt, seed) for prompt in some for seed in numbers]
        for some, numbers in ((prompts, seeds), (check_prompts, check_seeds))
    )
    clips = [*search, *judges]

    def call(case: int, count: int) -> Any:
        return generate(*clips[case], count)

    settings: dict[str, Any] = {"prompts": list(prompts), "seeds": list(seeds)}
    check_settings = {"check_prompts": list(check_prompts), "check_seeds": list(check_seeds)}
    settings |= {key: str(value) for key, value in generate.facts.items()}
    return tune_cases(
        pipe,
        call,
        len(search),
        steps=steps,
        budgets=budgets,
        moves=moves,
        schedules=schedules,
        runs=runs,
        strategies=strategies,
        check=len(judges),
        output=output,
        settings=settings,
        check_settings=check_settings,
        progress=progress,
    )


def tune_cases(
    pipe: Any,
    call: Call,
    cases: int,
    *,
    steps: int,
    budgets: Sequence[float] = BUDGETS,
    moves: Sequence[str] = MOVES,
    schedules: Sequence[int] | None = None,
    runs: int = 6,
    strategies: Sequence[str] = (DEFAULT_STRATEGY,),
    check: int = 0,
    output: str | Path | None = None,
    settings: dict[str, Any] | None = None,
    check_settings: dict[str, Any] | None = None,
    progress: Callable[[str], None] = lambda _: None,
) -> Tuning:
    """`tune` for any way to call a pipeline; a case may be a batch of clips.

    First, the plain clips are run once, and weights of reuses are fitted to what they show. Then every move is measured
    at every step alone, from the stored state before that step. For each budget, the recipes that the search expects to
    be best are measured; what each measurement says of those like it decides on the next. At the end, the chosen
    recipes are run on clips that the search did not see, together with the given strategies and with fewer steps at
    equal cost, with full and with truncated guidance. The report shows the videos of the first of these clips.

    Args:
        pipe: a pipeline that `halfframe.enabled` serves.
        call: ``(case, steps)`` runs it for clip `case` with that many steps. The same case must give the same clip.
        cases: clips of the search are ``0 .. cases - 1``.
        steps: of the schedule that the recipes replace.
        budgets: shares of the full cost, 0..1, one recipe for each.
        moves: what is tried, see `MOVES`; a move with ``+`` is taken as it is.
        schedules: numbers of steps that recipes may have; by default `steps`, and from 12 on those of about 0.85, 0.7
            and 0.5 of it that are nearer to the plain run than every smaller number.
        runs: recipes measured for each budget.
        strategies: names and paths of recipes, as `halfframe.enabled` takes them, that are measured beside.
        check: clips ``cases .. cases + check - 1`` are for the check.
        output: folder for the log, the recipes and the table; a call with the same settings goes on from the log.
        settings: further settings that a log must match, such as prompts and seeds.
        check_settings: the same for the log of the check.
        progress: called with one line of text at a time.

    Raises:
        OptionError: unusable numbers or moves, or a log of other settings.
        StrategyError: one of the strategies is unknown.
    """
    checked(steps=steps, cases=cases, runs=runs, check=check, budgets=budgets, moves=moves, schedules=schedules)
    beside = [resolve_strategy(text, {}) for text in strategies]  # before anything is run
    folder = None if output is None else Path(output)
    kept = {"steps": steps, "moves": list(moves), "cases": cases, **(settings or {})}
    log = Log(None if folder is None else folder / "tuning.jsonl", kept)
    told = Progress(progress, 0)
    bench = Bench(pipe, call, cases, steps, log, told)
    bench.require_same_clip()
    parts = tried(moves, bench.guided())
    lengths = schedules_of(bench, schedules)
    ahead = most_passes(bench, lengths, parts, runs, budgets, check, beside, folder is not None)
    told.expect(sum(ahead))
    listed = ", ".join(map(str, lengths))
    told.say(f"schedules of {listed} steps; up to {sum(ahead):,} forward passes if nothing is known yet")
    tables = []
    for number, length in enumerate(lengths, 1):
        tables.append(bench.table(length, parts))
        told.expect(sum(ahead[number:]))
    tables = [replace(table, costs=bench.costs(parts)) for table in tables]  # by all the times that were taken
    told.say(f"{len(log)} results measured; searching")
    search, chosen = Search(bench, tables, [budget * steps for budget in budgets]), []
    for number, budget in enumerate(sorted(budgets, reverse=True), len(lengths) + 1):
        chosen.append(search.best(budget * steps, runs))
        told.expect(sum(ahead[number:]))
    peak = _peak(bench)
    judge = bench if not check else _judge(bench, cases, check, {**kept, **(check_settings or {})}, folder)
    judged = tuple(measure(judge, found.recipe.moves, found.cost, found.predicted) for found in chosen) if check else ()
    candidates = tuple(judge.candidate(name) for name in dict.fromkeys(strategies))
    rivals = tuple(_rivals(judge, steps, bench.guided()))
    tuning = Tuning(steps, tuple(tables), tuple(chosen), judged, rivals, peak, candidates)
    if folder is not None:
        _save(tuning, folder)
        page = folder / "report.html"
        shown, notes = clips_of(tuning, pipe, partial(call, cases if check else 0), page, progress)
        page.write_text(html_page(tuning, shown, notes), encoding="utf-8")
    return tuning


def _judge(bench: Bench, first: int, count: int, kept: dict[str, Any], folder: Path | None) -> Bench:
    """A bench over the clips that the search did not see."""
    log = Log(None if folder is None else folder / "check.jsonl", {**kept, "check": count})

    def call(case: int, steps: int) -> Any:
        return bench.call(first + case, steps)

    return replace(bench, call=call, cases=count, log=log, replays=False)  # with all times that were taken


def _rivals(bench: Bench, steps: int, guided: bool) -> Sequence[Measured]:
    """Every number of fewer steps, and all numbers with guidance truncated."""
    rivals = []
    for count in range(1, steps + 1):
        bench.progress.say(f"rivals: {count} of {steps} steps")
        for rival in fewer_steps(count, guided):
            if rival.cost < steps:
                rivals.append(measure(bench, rival.moves, rival.cost, None, rival.kind))
    return rivals


def _peak(bench: Bench) -> float:
    latents = [bench.plain(case, bench.steps) for case in range(bench.cases)]
    return max(float(one.max() - one.min()) for one in latents) ** 2


def _save(tuning: Tuning, folder: Path) -> None:
    names: dict[str, Recipe] = {}
    for found in tuning.checked or tuning.chosen:
        name = f"recipe-{found.cost / tuning.steps:.2f}"
        if names.setdefault(name, found.recipe) != found.recipe:  # another that costs nearly the same
            name = f"recipe-{found.cost / tuning.steps:.4f}"
        replace(found.recipe, measured=to_dict(tuning, found)).save(folder / f"{name}.json")
    write_json(tuning, folder / "tuning.json")
    (folder / "tuning.md").write_text(table(tuning), encoding="utf-8")
