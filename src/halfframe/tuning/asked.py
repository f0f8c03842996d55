"""What `tune` is asked: checked, with the moves and schedules that follow from it, and what it takes at most."""

from __future__ import annotations

import math
from collections.abc import Sequence

from halfframe.errors import OptionError, is_count
from halfframe.sampling.strategy import Strategy
from halfframe.strategies.recipe import Recipe, reuses, unweighted
from halfframe.tuning.rivals import fewer_steps, most_steps
from halfframe.tuning.search import measurable, parts_of
from halfframe.tuning.table import Bench

__all__ = ["checked", "most_passes", "schedules_of", "tried"]

SHARES = (0.85, 0.7, 0.5)
"""About these shares of the steps are the schedules of fewer steps that recipes are made for, too."""

_MANY = 12
"""The least number of steps for which those are searched; below it, no recipe for fewer steps was nearer."""


def checked(
    *,
    steps: int,
    cases: int,
    runs: int,
    check: int,
    budgets: Sequence[float],
    moves: Sequence[str],
    schedules: Sequence[int] | None,
) -> None:
    """Refuse what `tune` cannot work with, before anything is run.

    Raises:
        OptionError: the message says which, and what is needed.
    """
    for name, value, least in (("steps", steps, 1), ("cases", cases, 1), ("runs", runs, 1), ("check", check, 0)):
        if not is_count(value, least):
            raise OptionError(f"{name} must be an integer >= {least}, got {value!r}.")
    if not _listed(budgets) or not budgets or not all(isinstance(one, int | float) and 0 < one <= 1 for one in budgets):
        raise OptionError(f"budgets must be a list of shares of the full cost in 0..1, got {budgets!r}.")
    if not _listed(moves):
        raise OptionError(f"moves must be a list of moves, such as ['merge:2', 'reuse'], got {moves!r}.")
    if schedules is not None and not (_listed(schedules) and all(is_count(one, 1) for one in schedules)):
        raise OptionError(f"schedules must be a list of numbers of steps, integers >= 1, got {schedules!r}.")
    for move in moves:
        tried([move], guided=True)


def tried(moves: Sequence[str], guided: bool) -> tuple[str, ...]:
    """`moves` and, if steps are guided, those with a forward pass also without the unconditional one.

    Raises:
        OptionError: a move is unknown, has weights, or leaves out a pass that is not made anyway.
    """
    found = ["full"]
    for move in ("full", *moves):
        if unweighted(move) != move:
            raise OptionError(
                f"move {move!r} has weights, but tune fits them to what plain runs show; give {unweighted(move)!r}."
            )
        Recipe(("full", "full", move))  # refuses unknown moves
        if "+" in move and not guided:
            raise OptionError(
                f"move {move!r} leaves out the unconditional pass, but this pipeline runs without guidance, one pass a "
                f"step; give {move.partition('+')[0]!r} instead, or turn guidance on."
            )
        plain = "+" not in move and not reuses(move)
        found += [move, *((f"{move}+cond", f"{move}+delta") if plain and guided else ())]
    return tuple(dict.fromkeys(found))


def schedules_of(bench: Bench, given: Sequence[int] | None) -> tuple[int, ...]:
    """Numbers of steps that recipes may have: those `given`, else of `bench`, and of fewer steps that come near.

    Of fewer steps, some numbers are better than one more: the schedule's noise levels and the switch fall well.
    """
    if given:
        return tuple(dict.fromkeys(given))
    steps = bench.steps
    most = range(round(min(SHARES) * steps), steps) if steps >= _MANY else range(0)
    if most:
        passes = bench.passes() * bench.cases * sum(most)
        bench.progress.expect(passes)
        bench.progress.say(
            f"plain runs of {most[0]} to {most[-1]} steps, to choose schedules: up to {passes:,} forward passes"
        )
    bases = {count: bench.base(count) for count in most}
    good = [count for count in most if all(bases[count] < bases[fewer] for fewer in most if fewer < count)]
    nearest = (min(good, key=lambda count: abs(count - share * steps)) for share in SHARES if good)
    return tuple(dict.fromkeys((steps, *nearest)))


def most_passes(
    bench: Bench,
    lengths: Sequence[int],
    moves: Sequence[str],
    runs: int,
    budgets: Sequence[float],
    check: int,
    strategies: Sequence[Strategy],
    report: bool,
) -> list[int]:
    """Forward passes at most: of each schedule's moves, of each budget's recipes, of the check, and of the report.

    Args:
        bench: of the search.
        lengths: of the schedules.
        moves: as `tried` gives them.
        runs: recipes for each budget.
        budgets: shares of the full cost.
        check: clips of the check; without any the clips of the search judge.
        strategies: measured beside.
        report: whether there is one, with clips.
    """
    each, steps, guided = bench.passes(), bench.steps, bench.guided()
    clip = each * bench.cases
    tables = [clip * (length + _tries(length, moves)) for length in lengths]
    tables[-1] += sum(2 + each for move in moves if _computes_frames(move))  # to time them
    longest = max(lengths)  # a cheap move makes a forward pass as well as a dear one
    search = [
        math.ceil(clip * (runs * longest + sum(rival.cost for rival in most_steps(budget * steps, steps, guided))))
        for budget in budgets
    ]
    rivals = sum(rival.cost for count in range(1, steps + 1) for rival in fewer_steps(count, guided))
    beside = sum(len(one.moves) if isinstance(one, Recipe) else steps for one in strategies)
    recipes = len(budgets) * max(longest, steps)
    judged = (check or bench.cases) * (rivals + beside + (recipes if check else 0))
    clips = steps + recipes + beside + (len(budgets) + len(strategies)) * steps if report else 0
    return [*tables, *search, math.ceil(each * judged), each * clips]


def _tries(steps: int, moves: Sequence[str]) -> int:
    """Steps that are computed at most to measure a table of single moves.

    Where the high-noise expert ends decides only which of ``full+cond`` and ``full+delta`` is tried.
    """
    parts = dict.fromkeys(part for move in moves for part in parts_of(move) if part != "full")
    ends = sum(steps - index for index in range(steps) for part in parts if measurable(index, part, 0))
    alone = sum(map(_computes_frames, parts)) * (steps - 1) if "reuse" in parts else 0
    return ends + alone


def _listed(value: object) -> bool:
    return isinstance(value, Sequence) and not isinstance(value, str)


def _computes_frames(move: str) -> bool:
    return "+" not in move and move != "full" and not reuses(move)
