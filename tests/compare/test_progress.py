"""Lines and bars of long work."""

from __future__ import annotations

import importlib.util
import io
import sys

import pytest

from halfframe.compare.progress import Progress, Teller


class Terminal(io.StringIO):
    """What a terminal gets."""

    def isatty(self) -> bool:
        return True


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    now = [0.0]
    monkeypatch.setattr("halfframe.compare.progress.time.monotonic", lambda: now[0])
    return now


def worked(tell: object, clock: list[float]) -> None:
    progress = Progress(tell, 8)  # type: ignore[arg-type]
    progress.say("begins")
    clock[0] += 60
    progress.done(2, "first done")
    progress.add(2)
    clock[0] += 180
    progress.done(6)
    progress.say("all but two")


def test_lines_say_how_long_the_rest_takes_once_that_is_known(clock: list[float]) -> None:
    told: list[str] = []
    worked(told.append, clock)
    assert told == ["begins", "first done; about 3 min left", "all but two; about 60 s left"]


def test_a_teller_tells_the_same_lines_where_there_is_no_terminal(
    clock: list[float], capsys: pytest.CaptureFixture[str]
) -> None:
    with Teller("halfframe compare") as tell:
        worked(tell, clock)
    captured = capsys.readouterr()
    assert captured.err.splitlines() == ["begins", "first done; about 3 min left", "all but two; about 60 s left"]
    assert not captured.out


def test_a_terminal_has_a_bar_below_the_lines(clock: list[float], monkeypatch: pytest.MonkeyPatch) -> None:
    terminal = Terminal()
    monkeypatch.setattr(sys, "stderr", terminal)
    with Teller("halfframe compare") as tell:
        worked(tell, clock)
        tell("the end is near")
    pieces = [piece.strip() for piece in terminal.getvalue().replace("\n", "\r").split("\r")]
    lines = [piece for piece in pieces if piece and not piece.startswith("halfframe compare |")]
    assert lines == ["begins", "first done", "all but two", "the end is near"]
    bars = [piece for piece in pieces if piece.startswith("halfframe compare |")]
    assert any("| 25%, about 3 min left" in bar for bar in bars)
    assert bars[-1].endswith("| 80%, about 60 s left")
    assert not pieces[-1]  # it is taken away


def test_a_terminal_without_tqdm_has_lines(clock: list[float], monkeypatch: pytest.MonkeyPatch) -> None:
    find_spec = importlib.util.find_spec
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None if name == "tqdm" else find_spec(name))
    terminal = Terminal()
    monkeypatch.setattr(sys, "stderr", terminal)
    worked(Teller("halfframe compare"), clock)
    assert terminal.getvalue().splitlines() == [
        "begins",
        "first done; about 3 min left",
        "all but two; about 60 s left",
    ]
