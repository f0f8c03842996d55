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
from halfframe.tuning import MOVES, tune_cases
from halfframe.tuning.log import Log
from halfframe.tuning.search import measurable
from halfframe.tuning.table import Bench

__all__ = ["BUDGETS", "items"]

BUDGETS = (0.95, 0.9, 0.85, 0.8, 0.7, 0.6, 0.5, 0.45, 0.4, 0.3)
_MOVES_I2V = ("interleave:2", "interleave:3", "interleave:4", "reuse")  # `merge` is `interleave` there
_RUNS = 6
_RANKS = {"t2v-8": 1.5, "lora-4": 1.6, "t2v-20": 1.7, "i2v-20": 1.8, "i2v-8": 6.8}
_PIECES = {20: 10, 15: 6, 10: 3, 8: 4, 6: 2}


def moves_of(setting: Setting) -> tuple[str, ...]:
    """What is tried at every step."""
    return _MOVES_I2V if setting.model == "i2v" else MOVES


def lengths_of(setting: Setting) -> tuple[int, ...]:
    """Numbers of steps that recipes may have: as `tune` has them."""
    return tuple(dict.fromkeys((setting.steps, round(0.75 * setting.steps), round(0.5 * setting.steps))))


def items() -> list[Item]:
    """Pieces of the table of moves, the search, and a judgement for each budget."""
    found = []
    for setting in SETTINGS.values():
        rank, pieces = _RANKS[setting.name], []
        for length in lengths_of(setting):
            count = min(_PIECES.get(length, 1), length)
            for piece in range(count):
                indexes = list(range(piece, length, count))
                passes = sum(length - index for index in indexes) * 7 * setting.passes
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
    pipe = session.pipe(setting.model)
    bench = Bench(pipe, _case(session, setting), 1, setting.steps, Log(None, {}), Progress(lambda _: None, 0))
    bench.plain(0, setting.steps)  # before others: it lets go of the records of any but the latest other length
    high = bench.high(length)
    parts = [move for move in ("full+cond", "full+delta") if setting.guided] + list(moves_of(setting))
    errors = {}
    for index in item.options["indexes"]:
        for part in parts:
            if measurable(index, part, high):
                alone = ["full"] * length
                alone[index] = part
                errors[f"move {length} {index} {part} #0"] = bench.error(0, alone, index)
    return {"errors": errors}


def _search(session: Session, item: Item) -> dict[str, Any]:
    """`tune` over what the pieces measured; costs are those of A14B, not this machine's."""
    setting, folder = item.setting, session.scratch / "tuning" / item.setting.name
    moves = moves_of(setting)
    settings = {"setting": setting.name, "clips": session.scale.tuning}
    kept = {"steps": setting.steps, "moves": list(moves), "cases": 1, **settings}
    log = Log(folder / "tuning.jsonl", kept)
    known = {f"cost {move}": cost for move, cost in costs_of(setting).items()}
    for row in session.results("moves", setting):
        known |= row["errors"]
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
        schedules=lengths_of(setting),
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
