"""What is run, in what order, and what is left when time runs out; the runs themselves are made up."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import pytest
import torch

import _session
from _parallel import Group, check_heads
from _results import Section
from _session import Latents, Session
from _timing import Timed
from _variants import parse
from halfframe import Guidance
from halfframe.errors import HalfframeError

from .made_up import FULL, HALF, VAE, forwards, made_run, made_section, split

GROUP = Group(0, 1, torch.device("cpu"))


@pytest.fixture
def made(monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, Any]]:
    """Runs that were made: steps and what `enabled` was given."""
    calls: list[tuple[int, Any]] = []

    def measured(host: Any, group: Any, clip: Any, steps: int, options: Any, **_: Any) -> Timed:
        calls.append((steps, options))
        options = options or {"strategy": "none"}
        if options["strategy"] == "own-noise":
            raise RuntimeError("out of memory")
        guidance = options.get("guidance", Guidance())
        cut = (guidance.skip_last, guidance.skip_last_high)
        high = FULL if options["strategy"] == "none" else HALF
        return Timed(made_run(steps, high, cut, report={"note": "", "strategy": "s", "predicted_speedup": 1.0}), None)

    monkeypatch.setattr(_session, "measured", measured)
    return calls


def session(section: Section, *variants: str, repeats: int = 1, writes: list[int] | None = None) -> Session:
    host: Any = None  # `measured` is all that would use it

    def write() -> None:
        if writes is not None:
            writes.append(sum(len(trials.runs) for trials in section.trials.values()))

    return Session(host, GROUP, section, [parse(v, (5, 3)) for v in variants], repeats, Latents(None, None, 0.0), write)


def test_every_run_is_written_and_fewer_steps_come_after_the_variants(made: list[tuple[int, Any]]) -> None:
    writes: list[int] = []
    assert session(made_section(), "self-duplicate", "cfg", writes=writes).run(None) == []
    assert [steps for steps, _ in made] == [20, 20, 20, 16, 11]
    assert writes == [1, 2, 3, 4, 5]


def test_variants_take_turns(made: list[tuple[int, Any]]) -> None:
    session(made_section(), "self-duplicate", repeats=2).run(None)
    assert [(steps, options is not None) for steps, options in made] == [
        (20, False),
        (20, True),
        (11, False),
    ] * 2


def test_a_shortened_run_needs_no_runs_with_fewer_steps(made: list[tuple[int, Any]]) -> None:
    session(made_section(3), "self-duplicate+cfg").run(None)
    truncated = {"strategy": "self-duplicate", "guidance": Guidance(skip_last=1, skip_last_high=1)}
    assert made == [(3, None), (3, truncated)]


def test_going_on_runs_what_is_missing(made: list[tuple[int, Any]]) -> None:
    section = made_section(3)
    session(section, "self-duplicate").run(None)
    made.clear()
    assert session(section, "self-duplicate", "cfg").run(None) == []
    assert [options["strategy"] for _, options in made] == ["none"]
    assert session(section, "self-duplicate").pending() is None


def test_a_variant_that_fails_is_noted_and_tried_again_by_the_next_command(made: list[tuple[int, Any]]) -> None:
    section = made_section(3)
    session(section, "own-noise", "self-duplicate").run(None)
    assert section.trials["own-noise"].error == "FAILED: RuntimeError: out of memory"
    assert len(section.trials["self-duplicate"].runs) == 1
    made.clear()
    session(section, "own-noise", "self-duplicate").run(None)
    assert [options["strategy"] for _, options in made] == ["own-noise"]


def test_nothing_is_begun_that_will_not_be_over_in_time(made: list[tuple[int, Any]]) -> None:
    section = made_section()
    until = time.monotonic() + 1.1 * session(section).estimate(parse("self-duplicate", (5, 3)), 20)
    assert session(section, "self-duplicate").run(until) == ["baseline", "self-duplicate"]
    assert made == []


@pytest.mark.parametrize(
    ("name", "steps", "high", "cut"),
    [("self-duplicate", 20, HALF, (0, 0)), ("self-duplicate+cfg", 3, HALF, (1, 1)), ("cfg", 20, FULL, (5, 3))],
)
def test_estimates(name: str, steps: int, high: float, cut: tuple[int, int]) -> None:
    counts = forwards(split(steps), cut)
    expected = counts["high"] * high + counts["low"] * FULL + VAE  # all that is known before the first run
    assert session(made_section()).estimate(parse(name, (5, 3)), steps) == pytest.approx(expected)


@pytest.mark.parametrize(("budget", "steps"), [(None, 20), (180.0, 20), (175.0, 17), (70.0, 9), (50.0, 6), (1.0, 3)])
def test_as_many_steps_as_there_is_time_for(budget: float | None, steps: int) -> None:
    """Baseline and one halved variant: 39 + 21 s at 9 steps; at 20 they take 83 + 44 s, and 10 plain steps 43 s."""
    section = made_section(0)
    session(section, "self-duplicate").decide(None, budget)
    assert section.run_steps == steps


def test_steps_once_decided_stay() -> None:
    section = made_section(3)
    session(section).decide(None, 10_000.0)
    assert section.run_steps == 3
    with pytest.raises(ValueError, match="are of 3 steps"):
        session(section).decide(6, None)


def test_latents_are_checked(tmp_path: Path) -> None:
    file = tmp_path / "latents.pt"
    noise = torch.randn(16, 2, 4, 4)
    Latents(file, None, 0.0).take("clip", noise)
    check = Latents(None, file, 0.01)
    assert check.missed
    assert check.take("another clip", noise) is None
    assert check.missed
    assert check.take("clip", 1.005 * noise) == pytest.approx(0.005, rel=1e-3)
    assert (check.failures, check.missed) == ([], False)
    check.take("clip", 1.02 * noise)
    check.take("clip", noise * float("nan"))
    assert len(check.failures) == 2


def test_latents_of_an_earlier_command_stay_if_it_is_gone_on_from(tmp_path: Path) -> None:
    file = tmp_path / "latents.pt"
    for key, resume in (("first", False), ("second", True)):
        Latents(file, None, 0.0, resume).take(key, torch.ones(2))
    assert sorted(torch.load(file)) == ["first", "second"]
    Latents(file, None, 0.0).take("third", torch.ones(2))
    assert sorted(torch.load(file)) == ["third"]


def test_heads_that_cannot_be_shared() -> None:
    check_heads(40, 8)
    with pytest.raises(HalfframeError, match=r"3 processes cannot share 40 attention heads.*Use 2, 4, 5, 8, 10"):
        check_heads(40, 3)
