"""Recipes: tuned on eight clips, in pieces that processes share, and judged on clips that the search did not see."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from calibration import reference_id
from session import Session
from settings import SETTINGS, Item, Setting, cost_of_moves, run_seconds

import halfframe
from halfframe.compare.progress import Progress
from halfframe.strategies.recipe import reuses
from halfframe.tuning import MOVES, tried, tune_cases
from halfframe.tuning.log import Log
from halfframe.tuning.table import Bench

__all__ = ["BUDGETS", "items"]

BUDGETS = (0.95, 0.9, 0.85, 0.8, 0.7, 0.6, 0.5, 0.45, 0.4, 0.3)
_MOVES_I2V = ("interleave:2", "interleave:3", "interleave:4", "reuse")  # `merge` is `interleave` there
_RUNS = 12
_RANKS = {"t2v-20": 1.4, "i2v-20": 1.45, "t2v-8": 1.5, "i2v-8": 1.55, "lora-4": 1.6}
_PIECES = {20: 8, 17: 6, 15: 5, 12: 4, 10: 3, 8: 3}
_LENGTHS = {20: (20, 17, 15, 12, 10), 8: (8, 6), 4: (4, 3)}


def moves_of(setting: Setting) -> tuple[str, ...]:
    """What is tried at every step."""
    return _MOVES_I2V if setting.model == "i2v" else MOVES


def items() -> list[Item]:
    """Pieces of the table of moves, the search, and a judgement for each budget."""
    found = []
    for setting in SETTINGS.values():
        rank, pieces = _RANKS[setting.name], []
        for length in _LENGTHS[setting.steps]:
            count = min(_PIECES.get(length, 1), length)
            for piece in range(count):
                indexes = list(range(piece, length, count))
                passes = sum(3 * (length - index) + 4 for index in indexes) * setting.passes
                options = {"length": length, "indexes": indexes}
                label = f"{length} steps, piece {piece + 1} of {count}"
                seconds = 3.0 + 0.02 * passes
                pieces.append(Item("moves", setting, label, rank, seconds, _piece, options, (reference_id(setting),)))
        needs = tuple(piece.id for piece in pieces)
        seconds = 5.0 + 0.02 * len(BUDGETS) * _RUNS * setting.steps * setting.passes
        search = Item("search", setting, "recipes", rank + 0.01, seconds, _search, needs=needs)
        found += [*pieces, search]
        for number, budget in enumerate(BUDGETS):
            seconds = run_seconds(setting, setting.steps * budget)
            options = {"number": number}
            needs = (search.id, reference_id(setting))
            found.append(Item("recipe", setting, f"{budget:g}", rank + 0.02, seconds, _judge, options, needs))
    return found


def _case(session: Session, setting: Setting) -> Any:
    """Calls the pipeline for all clips of the search, in one batch."""

    def call(case: int, steps: int) -> Any:
        return session.call(setting, session.scale.clips, session.scale.tuning, steps)

    return call


def _piece(session: Session, item: Item) -> dict[str, Any]:
    """Errors of single moves at some of the steps."""
    setting, length = item.setting, item.options["length"]
    log = Log(None, {})
    pipe = session.pipe(setting.model)
    bench = Bench(pipe, _case(session, setting), 1, setting.steps, log, Progress(lambda _: None, 0))
    for index in item.options["indexes"]:
        bench.row(length, index, tried(moves_of(setting), setting.guided))
    return {"measured": {name: value for name, value in log.items() if not name.startswith("products")}}


def _search(session: Session, item: Item) -> dict[str, Any]:
    """`tune` over what the pieces measured; costs are those of A14B, not this machine's."""
    setting, folder = item.setting, session.scratch / "tuning" / item.setting.name
    moves = moves_of(setting)
    settings = {"setting": setting.name, "clips": session.scale.tuning}
    kept = {"steps": setting.steps, "moves": list(moves), "cases": 1, **settings}
    log = Log(folder / "tuning.jsonl", kept)
    known = {f"cost {move}": cost for move, cost in costs_of(setting).items()}
    for row in session.results("moves", setting):
        known |= row["measured"]
    for name, value in known.items():
        log.get(name, lambda value=value: value)  # type: ignore[misc]
    pipe = session.pipe(setting.model)
    shares = [budget for budget in BUDGETS if budget * setting.steps >= 1]
    tuning = tune_cases(
        pipe,
        _case(session, setting),
        1,
        steps=setting.steps,
        budgets=shares,
        moves=moves,
        schedules=_LENGTHS[setting.steps],
        runs=_RUNS,
        strategies=(),
        output=folder,
        settings=settings,
    )
    chosen = [
        {
            "budget": budget,
            "moves": list(found.recipe.moves),
            "expected": None if found.predicted is None else tuning.decibels(found.predicted),
            "tuned": tuning.decibels(found.error),
        }
        for budget, found in zip(sorted(shares, reverse=True), tuning.chosen, strict=True)
    ]
    return {"chosen": chosen}


def costs_of(setting: Setting) -> dict[str, float]:
    """Cost of each move in full steps at A14B's sizes; of maps that alternate, the dearest."""
    costs = {}
    for move in ("full", *moves_of(setting)):
        recipes = [[*["full"] * before, move] for before in (2, 3, 4, 5)]
        costs[move] = max(cost_of_moves(setting, moves) - len(moves) + 1 for moves in recipes)
        if setting.guided and not reuses(move):
            costs |= {f"{move}{rule}": costs[move] / 2 for rule in ("+cond", "+delta")}
    return costs


def _judge(session: Session, item: Item) -> dict[str, Any]:
    """A recipe on clips that the search did not see."""
    chosen = session.results("search", item.setting)[-1]["chosen"]
    budget = BUDGETS[item.options["number"]]
    found = next((recipe for recipe in chosen if recipe["budget"] == budget), None)
    if found is None:
        return {"skipped": f"a budget of {budget} is less than one step"}
    moves: Sequence[str] = found["moves"]
    latents = session.make(item.setting, len(moves), halfframe.Recipe(tuple(moves)))
    cost = cost_of_moves(item.setting, moves)
    return session.judge(item.setting, latents, cost) | {key: found[key] for key in ("moves", "expected", "tuned")}
