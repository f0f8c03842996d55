"""A few of `grid`'s runs, the corners that once failed, and every scheduler of diffusers."""

from __future__ import annotations

import dataclasses

import pytest
import torch

from . import grid

CORNER = grid.Case("diffusers", "merge", (), 3, 3, torch.float32, 0, 1, "one", (4.0, 4.0), 1.0, "heun")
NOT_FLOW = ("UniPC, epsilon", "DPM++, epsilon", "Euler ancestral", "DDIM")


@pytest.mark.filterwarnings("ignore:halfframe. nothing was skipped")  # one frame, or no high-noise step
@pytest.mark.filterwarnings("ignore:In CPU autocast")
@pytest.mark.parametrize("host", ["diffusers", "wan"])
def test_random_runs_are_those_of_the_plain_loop(host: str) -> None:
    done, found = grid.attack(host, 12, seconds=20, seed=2)
    assert done > 5
    assert not found


@pytest.mark.parametrize(
    "changes",
    [
        {"shift": 0.01, "scheduler": "euler"},  # its first sigma is above 1 by a rounding
        {"shift": 0.01, "strategy": "previous-odd"},
        {"steps": 1, "options": (("until", 1), ("stride", 4))},  # the boundary at sigma 1: a mean of noise is noise
    ],
    ids=["sigma above 1", "boundary above 1000", "boundary at 1000"],
)
@pytest.mark.filterwarnings("ignore:halfframe. nothing was skipped")
def test_corners(changes: dict[str, object]) -> None:
    assert not grid.wrong(dataclasses.replace(CORNER, **changes))  # type: ignore[arg-type]


@pytest.mark.parametrize("name", grid.configurations())
def test_schedulers_are_served_as_the_plain_loop_has_them_or_refused(name: str) -> None:
    result = grid.outcome(grid.configurations()[name], "merge")
    if result.startswith("not on plain diffusers"):
        pytest.skip(result)
    if name in NOT_FLOW:
        assert "refused" in result
        assert "not a flow-matching scheduler" in result
    elif name == "Euler, inverted":
        assert "has sigmas that rise" in result
    else:
        assert result == "equal"
