"""Interrupts by real timer signals leave nothing behind, wherever they come."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from typing import Any

import pytest

import halfframe
from halfframe import handle as handle_module
from halfframe.hosts.patching import Patches

from . import interrupts


@pytest.mark.parametrize("host", ["wan", "diffusers"])
def test_interrupts_at_random_moments_leave_nothing(host: str, pytestconfig: pytest.Config) -> None:
    command = [sys.executable, "-m", "tests.attacks.interrupts", host, "300", "25"]
    done = subprocess.run(command, cwd=pytestconfig.rootpath, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr
    outcome = json.loads(done.stdout.splitlines()[-1])
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


@pytest.mark.filterwarnings("ignore:halfframe. halfframe was switched off while")
def test_an_interrupt_at_any_line_of_ending_a_run_neither_hangs_nor_leaves_anything() -> None:
    """In the code that it calls as well: an event's lock would be left held, and the second attempt wait for it."""
    pipe, _ = interrupts.small("diffusers")

    def hung(*_: Any) -> None:
        raise interrupts.Hung

    before = signal.signal(signal.SIGALRM, hung)
    try:
        for at in range(1, 300):
            handle = halfframe.enable(pipe)
            claim = handle_module._Claim()
            claim.patches.set(pipe, "something", 1)
            handle._claims[claim] = None
            halfframe.disable(pipe)  # while it runs
            seen = 0

            def trace(*_: Any, at: int = at) -> Any:
                nonlocal seen
                seen += 1
                if seen == at:
                    sys.settrace(None)
                    raise interrupts.Interrupted
                return trace

            signal.setitimer(signal.ITIMER_REAL, 20)
            try:
                sys.settrace(trace)
                handle._end(claim, None)
            except interrupts.Interrupted:
                pass
            finally:
                sys.settrace(None)
            handle._end(claim, None)
            signal.setitimer(signal.ITIMER_REAL, 0)
            assert interrupts.left_behind(pipe) == []
            assert "something" not in vars(pipe)
            if seen < at:
                break
        assert 20 < at < 299
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


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
