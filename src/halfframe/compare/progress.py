"""How far a long piece of work is, and about how long the rest will take."""

from __future__ import annotations

import time
from collections.abc import Callable

__all__ = ["Progress"]


class Progress:
    """Tells what is done, and about how long the rest will take where that is ten seconds or more.

    Args:
        tell: is told, a line at a time.
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
        self._tell(text + self._rest())

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

    def _rest(self) -> str:
        seconds = self.each * self._left
        if seconds < 10:
            return ""
        if seconds < 100:
            return f"; about {seconds:.0f} s left"
        return f"; about {seconds / 60:.0f} min left" if seconds < 6000 else f"; about {seconds / 3600:.1f} h left"
