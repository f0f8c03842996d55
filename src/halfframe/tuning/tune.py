"""`tune`: measure moves, search recipes for each budget, and compare them with fewer steps."""

from __future__ import annotations

import logging
import math
import statistics
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from halfframe.compare.generators import diffusers_generate, official_generate
from halfframe.compare.progress import Progress
from halfframe.errors import OptionError, is_count
from halfframe.plugins.strategies import DEFAULT_STRATEGY, resolve_strategy
from halfframe.sampling.weights import MOST_WEIGHTS
from halfframe.strategies.recipe import Recipe, reuses
from halfframe.tuning.clips import clips_of
from halfframe.tuning.frontier import html_page, table, to_dict, write_json
from halfframe.tuning.log import Log
from halfframe.tuning.result import Measured, Tuning
from halfframe.tuning.rivals import fewer_steps, most_steps
from halfframe.tuning.search import MoveTable, best_moves, parts_of
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
        schedules: numbers of steps that recipes may have; by default `steps`, three quarters and half of it.
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

    settings = {"prompts": list(prompts), "seeds": list(seeds)}
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
    progress: Callable[[str], None] = lambda _: None,
) -> Tuning:
    """`tune` for any way to call a pipeline; a case may be a batch of clips.

    First, the plain clips are run once. Then every move is measured at every step alone, from the stored state before
    that step. For each budget, the recipes that the search expects to be best are measured, and then variants of the
    best of them. At the end, the chosen recipes are run on clips that the search did not see, together with the given
    strategies and with fewer steps at equal cost, with full and with truncated guidance. The report shows the videos of
    the first of these clips.

    Args:
        pipe: a pipeline that `halfframe.enabled` serves.
        call: ``(case, steps)`` runs it for clip `case` with that many steps. The same case must give the same clip.
        cases: clips of the search are ``0 .. cases - 1``.
        steps: of the schedule that the recipes replace.
        budgets: shares of the full cost, 0..1, one recipe for each.
        moves: what is tried, see `MOVES`; a move with ``+`` is taken as it is.
        schedules: numbers of steps that recipes may have; by default `steps`, three quarters and half of it.
        runs: recipes measured for each budget.
        strategies: names and paths of recipes, as `halfframe.enabled` takes them, that are measured beside.
        check: clips ``cases .. cases + check - 1`` are for the check.
        output: folder for the log, the recipes and the table; a call with the same settings goes on from the log.
        settings: further settings that a log must match, such as prompts and seeds.
        progress: called with one line of text at a time.

    Raises:
        OptionError: unusable numbers or moves, or a log of other settings.
        StrategyError: one of the strategies is unknown.
    """
    for name, value, least in (("steps", steps, 1), ("cases", cases, 1), ("runs", runs, 1), ("check", check, 0)):
        if not is_count(value, least):
            raise OptionError(f"{name} must be an integer >= {least}, got {value!r}.")
    if not budgets or not all(0 < budget <= 1 for budget in budgets):
        raise OptionError(f"budgets must be shares of the full cost in 0..1, got {list(budgets)}.")
    for text in strategies:
        resolve_strategy(text, {})  # before anything is run
    lengths = tuple(schedules or dict.fromkeys((steps, round(0.75 * steps), round(0.5 * steps))))
    folder = None if output is None else Path(output)
    kept = {"steps": steps, "moves": list(moves), "cases": cases, **(settings or {})}
    log = Log(None if folder is None else folder / "tuning.jsonl", kept)
    told = Progress(progress, 0)
    bench = Bench(pipe, call, cases, steps, log, told)
    guided = bench.guided()
    tried = _tried(moves, guided)
    measured = runs + (0 if not check else 3 if guided else 1)  # fewer steps too; without a check they are the rivals
    ahead = _passes(bench, lengths, tried, [measured] * len(budgets), check, len(strategies))
    told.expect(sum(ahead))
    told.say(f"up to {sum(ahead):,} forward passes if nothing is known yet")
    errors = []
    for number, length in enumerate(lengths, 1):
        errors.append(bench.table(length, tried))
        told.expect(sum(ahead[number:]))
    tables = tuple(replace(table, costs=bench.costs(tried)) for table in errors)  # by all the times that were taken
    told.say(f"{len(log)} results measured; searching")
    chosen = []
    for number, budget in enumerate(sorted(budgets, reverse=True), len(lengths) + 1):
        chosen.append(_search(bench, tables, budget * steps, runs, guided))
        told.expect(sum(ahead[number:]))
    peak = _peak(bench)
    judge = bench if not check else _judge(bench, pipe, call, cases, check, kept, folder)
    checked = tuple(_run(judge, found.recipe.moves, found.cost, found.predicted) for found in chosen) if check else ()
    candidates = tuple(judge.candidate(name) for name in dict.fromkeys(strategies))
    rivals = tuple(_rivals(judge, steps, guided))
    tuning = Tuning(steps, tables, tuple(chosen), checked, rivals, peak, candidates)
    if folder is not None:
        _save(tuning, folder)
        page = folder / "report.html"
        shown, notes = clips_of(tuning, pipe, partial(call, cases if check else 0), page, progress)
        page.write_text(html_page(tuning, shown, notes), encoding="utf-8")
    return tuning


def _passes(
    bench: Bench, lengths: Sequence[int], tried: Sequence[str], recipes: Sequence[int], check: int, strategies: int
) -> list[int]:
    """Forward passes at most: of each schedule's moves, of each budget's recipes, of the check and all beside it."""
    parts = len({part for move in tried for part in parts_of(move)}) - 1
    each = bench.passes()
    tables = [each * bench.cases * (length + parts * length * (length + 1) // 2) for length in lengths]
    search = [each * bench.cases * count * bench.steps for count in recipes]
    rivals = sum(count * (3 if each == 2 else 1) for count in range(1, bench.steps + 1))
    judged = (check or bench.cases) * (rivals + (strategies + (len(recipes) if check else 0)) * bench.steps)
    return [*tables, *search, each * judged]


def _tried(moves: Sequence[str], guided: bool) -> tuple[str, ...]:
    tried = ["full"]
    for move in ("full", *moves):
        plain = "+" not in move and not reuses(move)
        tried += [move, *((f"{move}+cond", f"{move}+delta") if plain and guided else ())]
    Recipe((*["full"] * MOST_WEIGHTS, *tried))  # refuses unknown moves
    return tuple(dict.fromkeys(tried))


def _search(bench: Bench, tables: Sequence[MoveTable], budget: float, runs: int, guided: bool) -> Measured:
    """The best that was measured: of `runs` recipes, the expected best and those around it, and of fewer steps."""
    waiting: dict[tuple[str, ...], tuple[float, MoveTable]] = {}
    done: dict[tuple[str, ...], Measured] = {}

    def offer(table: MoveTable, forbidden: frozenset[tuple[int, str]]) -> None:
        moves = best_moves(table, budget, forbidden)
        if moves is not None and moves not in done and math.isfinite(table.error(moves)):
            waiting[moves] = (table.error(moves), table)

    for one in tables:
        offer(one, frozenset())
    while waiting and len(done) < runs:
        moves = min(waiting, key=lambda moves: waiting[moves][0])
        predicted, origin = waiting.pop(moves)
        done[moves] = found = _run(bench, moves, origin.cost(moves), predicted)
        bench.progress.say(f"budget {budget:.2f}: {' '.join(moves)}: {found.error:.3g}, expected {predicted:.3g}")
        if found is min(done.values(), key=lambda other: other.error):
            for index, move in enumerate(moves):
                if move != "full":
                    offer(origin, frozenset({(index, move)}))
    for rival in most_steps(budget, bench.steps, guided):
        if rival.moves not in done:
            done[rival.moves] = _run(bench, rival.moves, rival.cost, None)
    if not done:
        raise OptionError(f"no recipe costs {budget:.2f} full steps or less; give a larger budget, or further moves.")
    return min(done.values(), key=lambda found: found.error)


def _run(bench: Bench, moves: Sequence[str], cost: float, predicted: float | None, kind: str = "recipe") -> Measured:
    errors = bench.measured(moves)
    recipe = Recipe(tuple(moves), high_noise_steps=bench.high(len(moves)))
    return Measured(recipe, cost, predicted, statistics.fmean(errors), tuple(errors), kind)


def _judge(
    bench: Bench, pipe: Any, call: Call, first: int, count: int, kept: dict[str, Any], folder: Path | None
) -> Bench:
    """A bench over the clips that the search did not see."""
    log = Log(None if folder is None else folder / "check.jsonl", {**kept, "check": count})
    judge = Bench(pipe, lambda case, steps: call(first + case, steps), count, bench.steps, log, bench.progress)
    judge.seconds = bench.seconds
    return judge


def _rivals(bench: Bench, steps: int, guided: bool) -> Sequence[Measured]:
    """Every number of fewer steps, and all numbers with guidance truncated."""
    rivals = []
    for count in range(1, steps + 1):
        bench.progress.say(f"rivals: {count} of {steps} steps")
        for rival in fewer_steps(count, guided):
            if rival.cost < steps:
                rivals.append(_run(bench, rival.moves, rival.cost, None, rival.kind))
    return rivals


def _peak(bench: Bench) -> float:
    latents = [bench.plain(case, bench.steps)[0] for case in range(bench.cases)]
    return max(float(one.max() - one.min()) for one in latents) ** 2


def _save(tuning: Tuning, folder: Path) -> None:
    judged = tuning.checked or tuning.chosen
    for found in judged:
        measured = to_dict(tuning, found)
        name = f"recipe-{found.cost / tuning.steps:.2f}.json"
        replace(found.recipe, measured=measured).save(folder / name)
    write_json(tuning, folder / "tuning.json")
    (folder / "tuning.md").write_text(table(tuning), encoding="utf-8")
