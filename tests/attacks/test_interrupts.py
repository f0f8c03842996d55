"""Interrupts by real timer signals leave nothing behind, wherever they come."""

from __future__ import annotations

from typing import Any

import pytest

import halfframe
from halfframe.hosts.patching import Patches

from . import interrupts


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("host", ["wan", "diffusers"])
def test_interrupts_at_random_moments_leave_nothing(host: str) -> None:
    outcome = interrupts.attack(*interrupts.small(host), 300, seed=1, seconds=25)
    assert outcome["interrupted"] > 50
    assert not {name for name in outcome if name.isupper() or name.startswith(("WRONG", "HUNG"))}, outcome


def test_an_interrupt_within_an_undo_leaves_no_patch() -> None:
    thing = type("Thing", (), {})()
    patches = Patches()
    patches.set(thing, "first", 1)
    came = []

    def interrupted_once() -> None:
        if not came:
            came.append(1)
            raise KeyboardInterrupt

    patches.callback(interrupted_once)
    with pytest.raises(KeyboardInterrupt):
        patches.undo()
    assert vars(thing) == {}


def test_an_interrupt_before_the_first_line_of_leaving_leaves_nothing(t2v: Any) -> None:
    handle = halfframe.enabled(t2v)
    leaving = handle.__exit__  # as the interpreter takes it before it enters
    handle.__enter__()
    assert halfframe.enabled.__globals__["handle_of"](t2v) is handle
    del leaving
    with halfframe.enabled(t2v):
        pass


def test_looking_at_exit_within_a_block_does_not_leave_it(t2v: Any) -> None:
    with halfframe.enabled(t2v) as run:
        assert hasattr(run, "__exit__")
        assert "on" in str(run).splitlines()[0]
        with pytest.raises(halfframe.HalfframeError, match="enabled already"):
            halfframe.enabled(t2v)
