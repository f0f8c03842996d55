"""How far a long piece of work is, and about how long the rest will take."""

from __future__ import annotations

import importlib.util
import sys
import time
from collections.abc import Callable
from typing import Any

__all__ = ["Progress", "Teller"]


class Teller:
    """Tells a line at a time on stderr, for commands. On a terminal a bar stays below the lines, if tqdm is installed.

    As a context manager it takes the bar away at the end.

    Args:
        name: of the command, in front of the bar.
    """

    def __init__(self, name: str) -> None:
        self._name = name
        self._bar: Any = None

    def __call__(self, line: str) -> None:
        """Tell a line."""
        if self._bar is None:
            print(line, file=sys.stderr, flush=True)
        else:
            self._bar.write(line, file=sys.stderr)

    def __enter__(self) -> Teller:
        return self

    def __exit__(self, *_: object) -> None:
        if self._bar is not None:
            self._bar.close()
            self._bar = None

    def show(self, done: float, left: float, rest: str) -> bool:
        """Draw the bar, `rest` behind it; False where there is none."""
        if self._bar is None:
            if not sys.stderr.isatty() or importlib.util.find_spec("tqdm") is None:
                return False
            from tqdm import tqdm

            look = "{desc} |{bar:30}| {percentage:.0f}%{postfix}"
            self._bar = tqdm(desc=self._name, total=1, bar_format=look, file=sys.stderr, leave=False)
        self._bar.total = max(done + left, 1e-9)  # tqdm shows no share of nothing
        self._bar.n = done
        self._bar.set_postfix_str(rest)
        return True


class Progress:
    """Tells what is done, and about how long the rest will take where that is ten seconds or more.

    Args:
        tell: is told, a line at a time; a `Teller` has a bar too.
        work: how much there is to do, in any unit that takes about the same time each.
        each: seconds of a unit as far as is known before the first.
    """

    def __init__(self, tell: Callable[[str], None], work: float, each: float = 0.0) -> None:
        self._tell = tell
        self._left = work
        self._done = self._seconds = 0.0
        self._each = each
        self._since = time.monotonic()

    def say(self, text: str) -> None:
        """Tell something beside."""
        rest = self._rest()
        shown = isinstance(self._tell, Teller) and self._tell.show(self._done, self._left, rest)
        self._tell(text if shown or not rest else f"{text}; {rest}")

    def add(self, work: float) -> None:
        """There is more to do, or less if it is negative."""
        self._left = max(0.0, self._left + work)

    def expect(self, work: float) -> None:
        """So much is left."""
        self._left = work

    @property
    def each(self) -> float:
        """Seconds of a unit so far."""
        return self._seconds / self._done if self._done else self._each

    def done(self, work: float, text: str = "") -> None:
        """So much was done since the last time; `text` says what, if anything is to be told."""
        now = time.monotonic()
        self._seconds += now - self._since
        self._since = now
        self._done += work
        self.add(-work)
        if text:
            self.say(text)
        elif isinstance(self._tell, Teller):
            self._tell.show(self._done, self._left, self._rest())

    def _rest(self) -> str:
        seconds = self.each * self._left
        if seconds < 10:
            return ""
        if seconds < 100:
            return f"about {seconds:.0f} s left"
        return f"about {seconds / 60:.0f} min left" if seconds < 6000 else f"about {seconds / 3600:.1f} h left"
