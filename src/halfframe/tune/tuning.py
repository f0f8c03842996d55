"""`tune`: measure moves, search recipes for each budget, and measure those beside fewer steps."""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from halfframe.errors import OptionError, is_count
from halfframe.strategies.recipe import Recipe
from halfframe.tune.log import Log
from halfframe.tune.search import MoveTable, best_moves
from halfframe.tune.table import Bench, Call

__all__ = ["MOVES", "Measured", "Tuning", "tune"]

MOVES = ("merge:2", "merge:3", "merge:4", "interleave:2", "reuse")
"""Moves that are tried at every step; where steps are guided, each but ``reuse`` with ``+cond`` and ``+delta`` too."""


@dataclass(frozen=True, slots=True)
class Measured:
    """A recipe, or a rival, that was run.

    Attributes:
        recipe: its moves.
        cost: in full steps of the schedule asked for, by measured time.
        predicted: mean square error that the search expected; None for a rival.
        error: mean square error of the final latents, over the clips it was run on.
        errors: of each of these clips.
        kind: ``"recipe"``, ``"fewer steps"`` or ``"truncated guidance"``.
    """

    recipe: Recipe
    cost: float
    predicted: float | None
    error: float
    errors: tuple[float, ...]
    kind: str = "recipe"


@dataclass(frozen=True, slots=True)
class Tuning:
    """What `tune` found.

    Attributes:
        steps: of the schedule asked for.
        tables: the errors of single moves, for each schedule that was searched.
        chosen: the best recipe for each budget, as measured on the clips of the search.
        checked: the same recipes on clips that the search did not see; empty without such.
        rivals: fewer plain steps, and fewer steps with guidance truncated, measured on the same clips as `checked`
            (on those of the search without such).
        peak: largest square of the plain latents' range, for decibels.
    """

    steps: int
    tables: tuple[MoveTable, ...]
    chosen: tuple[Measured, ...]
    checked: tuple[Measured, ...]
    rivals: tuple[Measured, ...]
    peak: float

    def decibels(self, error: float) -> float:
        """A mean square error as PSNR in latents."""
        return 10 * math.log10(self.peak / error) if error else math.inf

    def rival(self, cost: float, kind: str) -> Measured | None:
        """The nearest rival of that kind that costs `cost` or less."""
        fitting = [rival for rival in self.rivals if rival.kind == kind and rival.cost <= cost + 0.02]
        return min(fitting, key=lambda rival: rival.error, default=None)


def tune(
    pipe: Any,
    call: Call,
    cases: int,
    *,
    steps: int,
    budgets: Sequence[float] = (0.9, 0.75, 0.6, 0.45),
    moves: Sequence[str] = MOVES,
    schedules: Sequence[int] | None = None,
    runs: int = 6,
    check: int = 0,
    output: str | Path | None = None,
    settings: dict[str, Any] | None = None,
    tell: Callable[[str], None] = lambda _: None,
) -> Tuning:
    """Measure on this pipeline what each step can do without, and make recipes of it.

    The plain clips are run once; then every move at every step alone, from the stored state before that step; then, for
    each budget, the recipes that the search expects to be best, and around the best of those again. At the end the
    chosen recipes are run on clips that the search did not see, beside fewer steps at equal cost, with all their
    guidance and with it truncated.

    Args:
        pipe: a pipeline that `halfframe.enabled` serves.
        call: ``(case, steps)`` calls it for clip `case` with so many steps; the same case must give the same clip.
        cases: clips of the search are ``0 .. cases - 1``.
        steps: of the schedule that the recipes stand in for.
        budgets: shares of the full cost, 0..1, one recipe for each.
        moves: what is tried, see `MOVES`; a move with ``+`` is taken as it is.
        schedules: numbers of steps that recipes may have; by default `steps`, three quarters and half of it.
        runs: recipes measured for each budget.
        check: clips ``cases .. cases + check - 1`` are for the check.
        output: folder for the log, the recipes and the table; a call with the same settings goes on from the log.
        settings: more that a log must agree on, such as prompts and seeds.
        tell: is told, a line at a time, what goes on.

    Raises:
        OptionError: unusable numbers or moves, or a log of other settings.
    """
    for name, value, least in (("steps", steps, 1), ("cases", cases, 1), ("runs", runs, 1), ("check", check, 0)):
        if not is_count(value, least):
            raise OptionError(f"{name} must be an integer >= {least}, got {value!r}.")
    if not budgets or not all(0 < budget <= 1 for budget in budgets):
        raise OptionError(f"budgets must be shares of the full cost in 0..1, got {list(budgets)}.")
    lengths = tuple(schedules or dict.fromkeys((steps, round(0.75 * steps), round(0.5 * steps))))
    folder = None if output is None else Path(output)
    kept = {"steps": steps, "moves": list(moves), "cases": cases, **(settings or {})}
    log = Log(None if folder is None else folder / "tuning.jsonl", kept)
    bench = Bench(pipe, call, cases, steps, log, tell)
    tried = _tried(moves, bench.guided())
    errors = [bench.table(length, tried) for length in lengths]
    tables = tuple(replace(table, costs=bench.costs(tried)) for table in errors)  # by all the times that were taken
    tell(f"{len(log)} results measured; searching")
    chosen = tuple(_search(bench, tables, budget * steps, runs, tell) for budget in sorted(budgets, reverse=True))
    peak = _peak(bench)
    judge = bench if not check else _judge(bench, pipe, call, cases, check, kept, folder)
    checked = tuple(_run(judge, found.recipe.moves, found.cost, found.predicted) for found in chosen) if check else ()
    rivals = tuple(_rivals(judge, steps, bench.guided(), tell))
    tuning = Tuning(steps, tables, chosen, checked, rivals, peak)
    if folder is not None:
        _save(tuning, folder)
    return tuning


def _tried(moves: Sequence[str], guided: bool) -> tuple[str, ...]:
    tried = ["full"]
    for move in ("full", *moves):
        plain = "+" not in move and move != "reuse"
        tried += [move, *((f"{move}+cond", f"{move}+delta") if plain and guided else ())]
    Recipe(("full", *tried))  # refuses a move that is none
    return tuple(dict.fromkeys(tried))


def _search(
    bench: Bench, tables: Sequence[MoveTable], budget: float, runs: int, tell: Callable[[str], None]
) -> Measured:
    """The best measured recipe of `runs`: the expected best, then those around the best so far."""
    waiting: dict[tuple[str, ...], tuple[float, MoveTable]] = {}
    done: dict[tuple[str, ...], Measured] = {}

    def offer(table: MoveTable, forbidden: frozenset[tuple[int, str]]) -> None:
        moves = best_moves(table, budget, forbidden)
        if moves is not None and moves not in done and math.isfinite(table.error(moves)):
            waiting[moves] = (table.error(moves), table)

    for table in tables:
        offer(table, frozenset())
    while waiting and len(done) < runs:
        moves = min(waiting, key=lambda moves: waiting[moves][0])
        predicted, table = waiting.pop(moves)
        done[moves] = found = _run(bench, moves, table.cost(moves), predicted)
        tell(f"budget {budget:.2f}: {' '.join(moves)}: {found.error:.3g}, expected {predicted:.3g}")
        if found is min(done.values(), key=lambda other: other.error):
            for index, move in enumerate(moves):
                if move != "full":
                    offer(table, frozenset({(index, move)}))
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
    judge = Bench(pipe, lambda case, steps: call(first + case, steps), count, bench.steps, log, bench.tell)
    judge.seconds = bench.seconds
    return judge


def _rivals(bench: Bench, steps: int, guided: bool, tell: Callable[[str], None]) -> Sequence[Measured]:
    """Fewer plain steps, and fewer steps of which the last skip the unconditional pass."""
    rivals = []
    for count in range(1, steps + 1):
        tell(f"rivals: {count} of {steps} steps")
        if count < steps:
            rivals.append(_run(bench, ["full"] * count, float(count), None, "fewer steps"))
        for skipped in (round(count * 0.25), round(count * 0.5)) if guided else ():
            if skipped:
                moves = ["full"] * (count - skipped) + ["full+cond"] * skipped
                rivals.append(_run(bench, moves, count - skipped / 2, None, "truncated guidance"))
    return rivals


def _peak(bench: Bench) -> float:
    latents = [bench.plain(case, bench.steps)[0] for case in range(bench.cases)]
    return max(float(one.max() - one.min()) for one in latents) ** 2


def _save(tuning: Tuning, folder: Path) -> None:
    from halfframe.tune.frontier import table, to_dict, write_json

    judged = tuning.checked or tuning.chosen
    for found in judged:
        measured = to_dict(tuning, found)
        name = f"recipe-{found.cost / tuning.steps:.2f}.json"
        replace(found.recipe, measured=measured).save(folder / name)
    write_json(tuning, folder / "tuning.json")
    (folder / "tuning.md").write_text(table(tuning), encoding="utf-8")
