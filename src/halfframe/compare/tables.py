"""The one writer of tables: in Markdown and in HTML, with everything in the cells taken as text."""

from __future__ import annotations

import html
import math
import re
from collections.abc import Collection, Sequence
from dataclasses import dataclass

__all__ = ["Table", "escaped", "number"]


@dataclass(frozen=True, slots=True)
class Table:
    """Text in rows and columns.

    Attributes:
        header: of the columns.
        rows: as many cells each.
        text: columns that are set to the left, by number; all others are figures, set to the right.
    """

    header: Sequence[str]
    rows: Sequence[Sequence[str]]
    text: Collection[int] = (0,)

    def markdown(self) -> str:
        """Lines with bars between the cells."""
        rule = ["---" if column in self.text else "---:" for column in range(len(self.header))]
        lines = [list(map(escaped, self.header)), rule, *(list(map(escaped, row)) for row in self.rows)]
        return "\n".join("| " + " | ".join(line) + " |" for line in lines)

    def html(self) -> str:
        """A ``<table>``."""
        head = "".join(self._cell("th", column, text) for column, text in enumerate(self.header))
        body = (
            "<tr>" + "".join(self._cell("td", column, text) for column, text in enumerate(row)) + "</tr>"
            for row in self.rows
        )
        return f"<table><thead><tr>{head}</tr></thead><tbody>{''.join(body)}</tbody></table>"

    def _cell(self, tag: str, column: int, text: str) -> str:
        kind = ' class="text"' if column in self.text else ""
        return f"<{tag}{kind}>{html.escape(text)}</{tag}>"


def number(value: float | None, form: str = "{}") -> str:
    """A figure as a cell: empty if there is none, ``identical`` if it is infinite."""
    if value is None:
        return ""
    return form.format(value) if math.isfinite(value) else "identical"


def escaped(text: str) -> str:
    """`text` without a meaning in Markdown or HTML, on one line; an underscore within a word has none."""
    return re.sub(r"([\\`*\[\]<>&|]|(?<!\w)_|_(?!\w))", r"\\\1", " ".join(text.split()))
