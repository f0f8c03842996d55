"""How many steps stand for how many, and what a shortened run says of the whole."""

from __future__ import annotations

import dataclasses

import pytest

from _steps import choose_steps
from _variants import parse, shortened

from .made_up import FULL, HALF, OWN, SOLVER, TEXT, VAE, forwards, kinds, made_run, made_section, split


@pytest.mark.parametrize(
    ("largest", "chosen"),
    [
        (20, 20),
        (19, 17),  # 11 + 6 is nearer to 13 + 7 than 12 + 7
        (16, 14),
        (9, 9),  # 3, 6 and 9 steps are equally near: the longest run says most
        (8, 6),
        (5, 3),
        (2, 3),  # with fewer than 3 the low-noise expert never runs
    ],
)
def test_the_split_nearest_to_that_of_20_steps(largest: int, chosen: int) -> None:
    assert choose_steps(20, largest, split) == chosen


def test_an_expert_that_the_target_does_not_use_is_not_asked_for() -> None:
    assert split(2) == (2, 0)
    assert choose_steps(2, 1, split) == 1


@pytest.mark.parametrize("steps", [3, 7, 20])
@pytest.mark.parametrize("truncation", [(0, 0), (5, 3), (9, 3), (5, 30), (30, 0), (0, 2)])
def test_forwards_are_those_that_halfframe_plans(steps: int, truncation: tuple[int, int]) -> None:
    section = made_section()
    section.steps, section.truncation = steps, truncation
    counts = forwards(split(steps), truncation)
    assert section.split(steps) == split(steps)
    assert section.kinds("cfg", steps) == {(expert, 13): count for expert, count in counts.items()}
    assert section.kinds("self-duplicate+cfg", steps) == {("high", 7): counts["high"], ("low", 13): counts["low"]}


@pytest.mark.parametrize(
    ("truncation", "steps", "expected"),
    [((5, 3), 20, (5, 3)), ((5, 3), 9, (2, 1)), ((5, 3), 3, (1, 1)), ((5, 0), 3, (1, 0))],
)
def test_truncation_shrinks_with_the_run_but_never_to_nothing(
    truncation: tuple[int, int], steps: int, expected: tuple[int, int]
) -> None:
    options = shortened(parse("cfg", truncation).options, 20, steps)
    assert options is not None
    assert (options["guidance"].skip_last, options["guidance"].skip_last_high) == expected


@pytest.mark.parametrize("high", [FULL, HALF])
def test_a_short_run_stands_for_the_long_one(high: float) -> None:
    """With times that do not vary, extrapolation is exact: also from a truncated run to one truncated otherwise."""
    short = made_run(3, high, (1, 1))
    long = made_run(20, high, (5, 3))
    assert short.seconds < long.seconds
    assert short.at(20, kinds(high, (5, 3))) == pytest.approx(long.seconds)


def test_no_extrapolation_for_an_expert_that_never_ran() -> None:
    with pytest.raises(ValueError, match="low-noise expert on 13 latent frames was timed, which says nothing of 14"):
        made_run(2).at(20, kinds(FULL))


def test_what_is_left_of_a_run() -> None:
    run = made_run(20, HALF)
    assert run.rest == pytest.approx(20 * SOLVER + VAE + TEXT + OWN)
    assert run.own == pytest.approx(OWN)


def test_the_ideal_has_the_forwards_alone_and_the_baselines_rest() -> None:
    slow = made_run(20, HALF)
    slow = dataclasses.replace(
        slow, seconds=slow.seconds + 7.0, forwards=tuple(dataclasses.replace(k, seconds=99.0) for k in slow.forwards)
    )
    ideal = slow.ideal(made_run(20), {13: FULL, 7: HALF})
    assert ideal.seconds == pytest.approx(made_run(20, HALF).seconds)
