"""What `tune` found, as plain data, a table, and a plot of cost against fidelity."""

from __future__ import annotations

import importlib
import json
import math
from pathlib import Path
from typing import Any

from halfframe.tuning.result import Measured, Tuning

__all__ = ["plot", "table", "to_dict", "write_json"]


def to_dict(tuning: Tuning, found: Measured) -> dict[str, Any]:
    """One measured recipe as plain data."""
    return {
        "kind": found.kind,
        "cost": round(found.cost, 3),
        "share": round(found.cost / tuning.steps, 3),
        "error": found.error,
        "decibels": _rounded(tuning.decibels(found.error)),
        "expected_decibels": None if found.predicted is None else _rounded(tuning.decibels(found.predicted)),
        "clips": len(found.errors),
    }


def write_json(tuning: Tuning, path: Path) -> None:
    """All that was found."""
    groups = {"chosen": tuning.chosen, "checked": tuning.checked, "rivals": tuning.rivals}
    data: dict[str, Any] = {
        name: [{"moves": list(found.recipe.moves), **to_dict(tuning, found)} for found in group]
        for name, group in groups.items()
    }
    data["steps"] = tuning.steps
    data["tables"] = [
        {"steps": table.steps, "high": table.high, "base": table.base, "costs": dict(table.costs)}
        | {"errors": [dict(row) for row in table.errors]}
        for table in tuning.tables
    ]
    path.write_text(json.dumps(data, indent=2) + "\n", encoding="utf-8")


def table(tuning: Tuning) -> str:
    """A Markdown table: each recipe beside fewer steps that cost as much or less."""
    judged = tuning.checked or tuning.chosen
    where = "clips that the search did not see" if tuning.checked else "the clips of the search"
    lines = [
        f"Latent PSNR in dB to the plain run of {tuning.steps} steps, over {len(judged[0].errors)} of {where}; cost in "
        f"full steps, by the time of forward passes on this machine.",
        "",
        "| cost | recipe | expected | fewer steps | fewer steps, truncated guidance | moves |",
        "| ---: | ---: | ---: | ---: | ---: | --- |",
    ]
    for found in judged:
        rivals = [tuning.rival(found.cost, kind) for kind in ("fewer steps", "truncated guidance")]
        shown = ["-" if rival is None else f"{_decibels(tuning, rival)} at {rival.cost:.2f}" for rival in rivals]
        expected = "-" if found.predicted is None else f"{tuning.decibels(found.predicted):.1f}"
        moves = " ".join(found.recipe.moves)
        lines.append(
            f"| {found.cost:.2f} | {_decibels(tuning, found)} | {expected} | {shown[0]} | {shown[1]} | `{moves}` |"
        )
    return "\n".join(lines) + "\n"


def plot(tuning: Tuning, path: Path) -> None:
    """Cost against fidelity: recipes, fewer steps, truncated guidance."""
    matplotlib = importlib.import_module("matplotlib")
    matplotlib.use("Agg")
    pyplot = importlib.import_module("matplotlib.pyplot")
    figure, axes = pyplot.subplots(figsize=(7, 4.5))
    groups = {"tuned recipes": tuning.checked or tuning.chosen}
    for kind in ("fewer steps", "truncated guidance"):
        groups[kind] = tuple(rival for rival in tuning.rivals if rival.kind == kind)
    for (name, group), style in zip(groups.items(), ("o-", "s--", "^:"), strict=True):
        points = sorted((found.cost, tuning.decibels(found.error)) for found in group if found.error)
        if points:
            axes.plot(*zip(*points, strict=True), style, label=name)
    axes.set_xlabel("cost in full steps")
    axes.set_ylabel(f"latent PSNR to the plain {tuning.steps} steps, dB")
    axes.grid(alpha=0.3)
    axes.legend()
    figure.tight_layout()
    figure.savefig(path, dpi=150)
    pyplot.close(figure)


def _decibels(tuning: Tuning, found: Measured) -> str:
    return f"{tuning.decibels(found.error):.1f}"


def _rounded(value: float) -> float | None:
    return round(value, 2) if math.isfinite(value) else None
