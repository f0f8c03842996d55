"""Recipes as files and as strategies; what they compute is held to a loop in tests/hosts/test_recipes.py."""

from __future__ import annotations

import dataclasses
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from halfframe import Guidance, Merge, OptionError, Recipe, Reuse, Step, StrategyError
from halfframe.plugins.configuration import configure
from halfframe.sampling.guidance import Delta
from halfframe.sampling.schedule import Schedule
from halfframe.strategies.recipe import differences, needs, reuses

BASES = ("full", "merge:2", "merge:4", "interleave:3", "interpolate:2", "own-noise:2")
RULES = ("", "+cond", "+delta", "+delta:1.5,-0.5")
MOVES = st.sampled_from([*(f"{base}{rule}" for base in BASES for rule in RULES), "reuse", "reuse:1.72,-0.72"])


def step(index: int, num_steps: int = 4, high: int = 2) -> Step:
    is_high = index < high
    return Step(
        index=index,
        num_steps=num_steps,
        timestep=900.0,
        sigma=0.9,
        expert="high" if is_high else "low",
        expert_index=index if is_high else index - high,
        expert_steps=high if is_high else num_steps - high,
        num_frames=9,
    )


@given(st.lists(MOVES, max_size=8), st.none() | st.floats(0, 1), st.dictionaries(st.text(), st.integers()))
def test_written_and_read_again_it_is_the_same(moves: list[str], sigma: float | None, measured: dict[str, int]) -> None:
    sigmas = None if sigma is None else [sigma] * (3 + len(moves))
    recipe = Recipe(("full", "full", "full", *moves), 1, sigmas, measured)  # type: ignore[arg-type]
    assert Recipe.from_dict(json.loads(json.dumps(recipe.to_dict()))) == recipe


def test_a_file(tmp_path: Path) -> None:
    recipe = Recipe(("merge:4", "full"), high_noise_steps=1, sigmas=(1.0, 0.5), measured={"decibels": 40})
    recipe.save(tmp_path / "recipe.json")
    assert Recipe.load(tmp_path / "recipe.json") == recipe
    assert configure(str(tmp_path / "recipe.json")).strategy == recipe
    data = json.loads((tmp_path / "recipe.json").read_text())
    assert (data["halfframe"], data["steps"], data["moves"]) == (1, 2, ["merge:4", "full"])


def test_moves_are_the_strategies_own_wherever_they_are_made() -> None:
    recipe = Recipe(("merge:3", "reuse", "merge:3+cond", "full"))
    assert recipe.move(step(0)) == Merge(stride=3).move(step(0))
    assert recipe.move(step(1)) == Reuse()
    assert recipe.move(step(2)) == Merge(stride=3, until="end").move(step(2))  # in the low-noise expert too
    assert recipe.move(step(3)) is None
    assert [recipe.at(step(i)) for i in range(4)] == ["both", "both", "conditional", "both"]
    assert bool(recipe)
    assert not Recipe(("full", "reuse"))
    weighted = Recipe(("full", "full+delta", "reuse:1.72,-0.72", "full"), high_noise_steps=2)
    assert weighted.move(step(2)) == Reuse((1.72, -0.72))
    assert [weighted.at(step(i)) for i in range(4)] == ["both", Delta(), "both", "both"]
    assert Recipe(("full", "full", "full", "merge:2+delta:3,-3,1")).at(step(3)) == Delta((3, -3, 1))


@pytest.mark.parametrize(
    ("moves", "message"),
    [
        ((), r"a recipe needs a list of moves, one for each step, got \(\)"),
        ("full", "a recipe needs a list of moves"),
        (("full", "megre:2"), r"move 2, 'megre:2', is unknown; needed: full, merge:N, .*Did you mean 'merge'\?"),
        (("full", "merge"), "move 2, 'merge', is unknown; .* with N >= 2"),
        (("full", "merge:1"), "move 2, 'merge:1', is unknown"),
        (("full", "full+uncond"), "is unknown"),
        (("full", "reuse+cond"), "is unknown"),
        (("reuse", "full"), "move 1, 'reuse', reuses 1 prediction, but earlier steps compute 0; begin with as many"),
        (("full", "reuse:"), "move 2, 'reuse:', is unknown; .* reuse:A,B,..., with 1 to 4 weights in -10..10"),
        (("full", "reuse:nan"), "move 2, 'reuse:nan', is unknown"),
        (("full", "reuse:1e0"), "move 2, 'reuse:1e0', is unknown"),
        (("full", "reuse:10.1"), "move 2, 'reuse:10.1', is unknown"),
        (("full", "reuse:1,"), "move 2, 'reuse:1,', is unknown"),
        (("full", "full", "reuse: 1, 2"), "is unknown"),
        (("full",) * 5 + ("reuse:1,1,1,1,1",), "move 6, .* is unknown"),
        (("full", "reuse:1+cond"), "is unknown"),
        (("full", "reuse+delta"), "is unknown"),
        (("full", "full+delta:"), "is unknown"),
        (("full", "full+delta:11"), "is unknown"),
        (("full", "full+cond:1"), "is unknown"),
        (("full", "full:2"), "is unknown"),
        (("full", "full+"), "is unknown"),
        (("full", "reuse:2,-1"), "move 2, 'reuse:2,-1', reuses 2 predictions, but earlier steps compute 1; begin with"),
        (("full", "reuse", "reuse:2,-1"), "move 3, 'reuse:2,-1', reuses 2 predictions, but earlier steps compute 1"),
        (("full", "full+cond", "reuse:1,1,1", "full"), "move 3, .* reuses 3 predictions, but earlier steps compute 2"),
        (("full+delta", "full"), r"move 1, 'full\+delta', reuses 1 guidance difference, but earlier steps compute 0"),
        (
            ("full", "full+cond", "reuse", "full+delta", "full+delta:2,-1"),
            "move 5, .* reuses 2 guidance differences, but earlier steps compute 1; put as many steps without",
        ),
    ],
)
def test_what_is_no_recipe(moves: Any, message: str) -> None:
    with pytest.raises(OptionError, match=message):
        Recipe(moves)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "is not JSON"),
        ("[]", 'not a recipe; needed: an object with "halfframe", "steps" and "moves"'),
        (
            '{"halfframe": 2, "steps": 1, "moves": ["full"]}',
            "format version 2 is unknown to this .*, which reads 1",
        ),
        ('{"halfframe": 1, "steps": 2, "moves": ["full"]}', '"steps" is 2, but there are 1 moves'),
        ('{"halfframe": 1, "steps": 1, "moves": "full"}', '"moves" must be a list of names'),
        ('{"halfframe": 1, "steps": 1, "moves": ["full"], "sigma": 1}', "unknown key 'sigma'.* Did you mean 'sigmas'"),
        ('{"halfframe": 1, "steps": 1, "moves": ["full"], "sigmas": 1}', '"sigmas" must be a list, got 1'),
        ('{"halfframe": 1, "steps": 1, "moves": ["full"], "sigmas": [1, 0]}', "sigmas must be 1 numbers in 0..1"),
        (
            '{"halfframe": 1, "steps": 1, "moves": ["full"], "sigmas": [2]}',
            r"sigmas must be 1 numbers in 0..1, got \[2\]",
        ),
        ('{"halfframe": 1, "steps": 1, "moves": ["full"], "high_noise_steps": 3}', "must be an integer in 0..1, got 3"),
    ],
)
def test_what_is_no_file_of_one(text: str, message: str, tmp_path: Path) -> None:
    path = tmp_path / "recipe.json"
    path.write_text(text)
    with pytest.raises(OptionError, match=f"recipe {path}.*{message}"):
        Recipe.load(path)


def test_a_file_that_is_not_there() -> None:
    with pytest.raises(OptionError, match=r"recipe nowhere\.json cannot be read: No such file"):
        configure("nowhere.json")


def test_another_schedule_is_refused_with_both_numbers() -> None:
    def refused(recipe: Recipe, steps: list[Step], message: str) -> None:
        with pytest.raises(StrategyError, match=f"strategy 'recipe': {message}"):
            Schedule.plan(steps, recipe)

    five, four = [[step(index, count) for index in range(count)] for count in (5, 4)]
    full = ("full",) * 4
    refused(Recipe(full), five, "the recipe is for 4 steps, but the schedule has 5")
    refused(Recipe(full, 3), four, "the recipe is for 3 high-noise steps of 4, but the schedule has 2; use the shift")
    levels = [replace(one, sigma=sigma) for one, sigma in zip(four, (1.0, 0.95, 0.9, 0.7), strict=True)]
    Schedule.plan(levels, Recipe(full, 2, (1.0, 0.951, 0.895, 0.7)))
    Schedule.plan(levels[2:], Recipe(full, 2, (0.3, 0.3, 0.9, 0.7)))  # a host that sees one expert's steps
    refused(
        Recipe(full, 2, (1.0, 0.95, 0.9, 0.68)), levels, "the recipe is for noise level 0.680 at step 4, .* has 0.700"
    )


def test_a_guidance_difference_is_one_experts() -> None:
    recipe = Recipe(("full", "full+delta", "full+delta", "full"))
    assert recipe.move(step(1)) is None
    with pytest.raises(StrategyError, match=r"move 3, 'full\+delta', .* steps of the low-noise expert compute 0"):
        recipe.move(step(2))
    recipe = Recipe(("full", "full", "full", "full", "full+delta:2,-1", "full+delta:2,-1"))
    assert recipe.move(step(4, num_steps=6, high=2)) is None
    with pytest.raises(StrategyError, match=r"move 5, .* 2 guidance differences, .* low-noise expert compute 1"):
        recipe.move(step(4, num_steps=6, high=3))


@pytest.mark.parametrize(
    ("move", "computed", "both"),
    [
        ("full", 0, 0),
        ("merge:2+cond", 0, 0),
        ("reuse", 1, 0),
        ("reuse:1.5", 1, 0),
        ("reuse:3,-3,1", 3, 0),
        ("full+delta", 0, 1),
        ("merge:2+delta:1.5,-0.5", 0, 2),
    ],
)
def test_what_a_move_needs_before_it(move: str, computed: int, both: int) -> None:
    assert (needs(move), differences(move), reuses(move)) == (computed, both, computed > 0)
    before = ("full+cond",) * computed + ("merge:2",) * both
    Recipe((*before, move))
    if before:
        with pytest.raises(OptionError, match=f"move {len(before)}, .* reuses {computed + both}"):
            Recipe((*before[1:], move))


def test_it_brings_its_own_guidance() -> None:
    recipe = Recipe(("full", "full+cond"))
    assert configure(recipe).guidance is recipe
    with pytest.raises(OptionError, match="says for each step what becomes of guidance; leave out guidance"):
        configure(recipe, guidance=Guidance(1))
    with pytest.raises(OptionError, match="was given as an instance"):
        configure(recipe, stride=2)


def test_it_cannot_be_changed() -> None:
    with pytest.raises(dataclasses.FrozenInstanceError):
        Recipe(("full",)).moves = ()  # type: ignore[misc]
