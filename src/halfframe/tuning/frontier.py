"""What `tune` found, as plain data, a table, and a page with cost against fidelity."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from halfframe.compare.report_page import Frontier, page
from halfframe.compare.tables import Table
from halfframe.tuning.result import Candidate, Measured, Tuning

__all__ = ["html_page", "table", "to_dict", "write_json"]

_RIVALS = ("fewer steps", "truncated guidance")


def to_dict(tuning: Tuning, found: Measured) -> dict[str, Any]:
    """One measured recipe as plain data."""
    expected = None if found.predicted is None else _rounded(tuning.decibels(found.predicted))
    return {"kind": found.kind, **_numbers(tuning, found), "expected_decibels": expected}


def write_json(tuning: Tuning, path: Path) -> None:
    """All that was found."""
    groups = {"chosen": tuning.chosen, "checked": tuning.checked, "rivals": tuning.rivals}
    data: dict[str, Any] = {
        name: [{"moves": list(found.recipe.moves), **to_dict(tuning, found)} for found in group]
        for name, group in groups.items()
    }
    data["strategies"] = [{"name": given.name, **_numbers(tuning, given)} for given in tuning.candidates]
    data["steps"] = tuning.steps
    data["tables"] = [
        {"steps": table.steps, "high": table.fits.high, "base": table.base, "costs": dict(table.costs)}
        | {"errors": [{move: alone.error for move, alone in row.items()} for row in table.effects]}
        for table in tuning.tables
    ]
    path.write_text(json.dumps(data, indent=2) + "\n", encoding="utf-8")


def table(tuning: Tuning) -> str:
    """A Markdown table: each recipe and strategy beside fewer steps at equal cost."""
    return f"{_about(tuning)}\n\n{_table(tuning).markdown()}\n"


def html_page(tuning: Tuning, cases: Sequence[Mapping[str, Any]], notes: Sequence[str]) -> str:
    """The table, the frontier, and the clips of `cases`; see `halfframe.compare.report_page`."""
    groups: dict[str, Sequence[Measured | Candidate]] = {"recipes": tuning.checked or tuning.chosen}
    groups |= {kind: tuple(rival for rival in tuning.rivals if rival.kind == kind) for kind in _RIVALS}
    groups["strategies"] = tuning.candidates
    points = {
        name: [(found.text, found.cost, tuning.decibels(found.error)) for found in group if 0 < found.error < math.inf]
        for name, group in groups.items()
    }
    frontier = Frontier("cost in full steps", f"latent PSNR to the plain {tuning.steps} steps, dB", points)
    return page("halfframe tune", _about(tuning), [_table(tuning)], cases, frontier, notes)


def _about(tuning: Tuning) -> str:
    where = "clips that the search did not see" if tuning.checked else "the clips of the search"
    return (
        f"Latent PSNR in dB to the plain run of {tuning.steps} steps, over "
        f"{len((tuning.checked or tuning.chosen)[0].errors)} of {where}; cost in full steps, by the time of forward "
        "passes on this machine."
    )


def _table(tuning: Tuning) -> Table:
    rows = []
    for found in tuning.shown:
        rivals = [tuning.rival(found.cost, kind) for kind in _RIVALS]
        shown = ["-" if rival is None else f"{_decibels(tuning, rival)} at {rival.cost:.2f}" for rival in rivals]
        expected = "-" if found.predicted is None else f"{tuning.decibels(found.predicted):.1f}"
        rows.append([f"{found.cost:.2f}", _decibels(tuning, found), expected, *shown, found.text])
    head = ["cost", "measured", "expected", "fewer steps", "fewer steps, truncated guidance", "recipe or strategy"]
    return Table(head, rows, (5,))


def _numbers(tuning: Tuning, found: Measured | Candidate) -> dict[str, Any]:
    return {
        "cost": round(found.cost, 3),
        "share": round(found.cost / tuning.steps, 3),
        "error": found.error,
        "decibels": _rounded(tuning.decibels(found.error)),
        "clips": len(found.errors),
    }


def _decibels(tuning: Tuning, found: Measured | Candidate) -> str:
    return f"{tuning.decibels(found.error):.1f}"


def _rounded(value: float) -> float | None:
    return round(value, 2) if math.isfinite(value) else None
