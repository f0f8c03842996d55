"""Results as they come, in a file of JSON lines that a later call reads again."""

from __future__ import annotations

import json
from collections.abc import Callable, ItemsView
from pathlib import Path
from typing import Any, TypeVar

from halfframe.errors import OptionError

__all__ = ["Log"]

_T = TypeVar("_T")


class Log:
    """Results by name, each computed once: numbers, or lists of them.

    Args:
        path: of the file; None keeps them in memory.
        settings: what they were measured with; a file of other settings is refused.

    Raises:
        OptionError: the file was written with other settings, or is not a log.
    """

    def __init__(self, path: Path | None, settings: dict[str, object]) -> None:
        self._path = path
        self._known: dict[str, Any] = {}
        if path is None:
            return
        first = json.dumps(settings) + "\n"
        if path.exists() and not first.startswith(path.read_text(encoding="utf-8")):
            self._read(path, settings)
        else:  # none yet, or interrupted before anything was measured
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(first, encoding="utf-8")

    def get(self, name: str, compute: Callable[[], _T]) -> _T:
        """The result of that name, computed if need be, and written down at once."""
        if name not in self._known:
            self._known[name] = compute()
            if self._path is not None:
                with self._path.open("a", encoding="utf-8") as file:
                    file.write(json.dumps([name, self._known[name]]) + "\n")
        found: _T = self._known[name]
        return found

    def __len__(self) -> int:
        return len(self._known)

    def items(self) -> ItemsView[str, Any]:
        """Names and results, in the order in which they came."""
        return self._known.items()

    def _read(self, path: Path, settings: dict[str, object]) -> None:
        text = path.read_text(encoding="utf-8")
        whole = text[: text.rfind("\n") + 1]  # what was cut off in the middle of a line is measured again
        first, *lines = whole.splitlines() or [""]
        try:
            written = dict(json.loads(first))
            self._known = dict(json.loads(line) for line in lines)
        except (TypeError, ValueError) as error:
            raise OptionError(f"{path} is not a log of halfframe tune: {error}; give another output folder.") from error
        wanted = json.loads(json.dumps(settings))
        other = sorted(key for key in {*written, *wanted} if written.get(key) != wanted.get(key))
        if other:
            raise OptionError(
                f"{path} was begun with other settings ({', '.join(other)} differ); give another output folder, "
                "delete this file, or give the same settings to go on."
            )
        if whole != text:
            path.write_text(whole, encoding="utf-8")
