"""``halfframe tune``: recipes for your own weights."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from halfframe.cli.options import add_pipeline, add_strategy, require_one_source, strategies_from

if TYPE_CHECKING:
    from halfframe.tuning import Tuning

__all__ = ["add_arguments", "main"]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add everything that `main` reads to `parser`, description included."""
    parser.description = (
        "Measure what each step can do without, and write recipes for budgets of time, measured beside fewer steps. "
        "The same command goes on from where it was stopped."
    )
    add_pipeline(parser)
    add_strategy(parser.add_argument_group("measured beside the recipes"), repeatable=True)
    search = parser.add_argument_group("the search")
    search.add_argument(
        "--check_prompt", action="append", metavar="TEXT", help="judges the recipes, hidden from the search; repeatable"
    )
    search.add_argument(
        "--budget",
        action="append",
        type=float,
        metavar="SHARE",
        help="share of the full cost, 0..1, that a recipe is made for; repeatable (default: 0.9 0.75 0.6 0.45)",
    )
    search.add_argument(
        "--move",
        action="append",
        metavar="MOVE",
        help="a move to try at every step; repeatable (default: merge:2 merge:3 merge:4 interleave:2 reuse)",
    )
    search.add_argument(
        "--schedule",
        action="append",
        type=int,
        metavar="N",
        help="number of steps that recipes may have; repeatable (default: the steps; of 12 or more, some fewer too)",
    )
    search.add_argument(
        "--runs", type=int, default=6, metavar="N", help="recipes measured for each budget (default: %(default)s)"
    )
    search.add_argument(
        "--output",
        type=Path,
        default=Path("tuned"),
        metavar="DIR",
        help="folder for recipes, tables and the log to go on from (default: %(default)s)",
    )


def main(arguments: argparse.Namespace) -> int:
    """Run `halfframe tune`: 0 if all went well, 130 if it was interrupted."""
    from halfframe.compare.progress import Teller  # not at the top: --help needs no torch
    from halfframe.tuning.frontier import table

    say = Teller("halfframe tune")
    try:
        with say:
            found = _tuned(arguments, say)
    except KeyboardInterrupt:
        say(f"halfframe tune: interrupted; what is measured is in {arguments.output}: the same command goes on from it")
        return 130
    print(table(found), end="")
    say(f"recipes and tables are in {arguments.output}")
    return 0


def _tuned(arguments: argparse.Namespace, say: Callable[[str], None]) -> Tuning:
    from halfframe.cli import pipelines
    from halfframe.tuning import BUDGETS, MOVES, tune_cases

    require_one_source(arguments)
    loaded = pipelines.load(arguments, say)
    prompts, seeds = arguments.prompt or [loaded.prompt], arguments.seed or [0]
    search, judges = (
        [(prompt, seed) for prompt in some for seed in seeds] for some in (prompts, arguments.check_prompt or [])
    )
    clips = [*search, *judges]

    def call(case: int, steps: int) -> Any:
        return loaded.generate(*clips[case], steps)

    facts = {key: str(value) for key, value in loaded.generate.facts.items()}
    return tune_cases(
        loaded.generate.pipe,
        call,
        len(search),
        steps=loaded.steps,
        budgets=arguments.budget or BUDGETS,
        moves=arguments.move or MOVES,
        schedules=arguments.schedule,
        runs=arguments.runs,
        strategies=[name for name in strategies_from(arguments) if name != "none"],
        check=len(judges),
        output=arguments.output,
        settings={"prompts": prompts, "seeds": seeds, "weights": loaded.weights, **facts},
        check_settings={"check_prompts": arguments.check_prompt},
        progress=say,
    )
