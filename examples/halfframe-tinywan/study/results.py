"""What ``run.py`` measured, read and put into figures: PSNR, leads over fewer steps, and what the clips show."""

from __future__ import annotations

import gzip
import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from halfframe_tinywan.truth import (
    FEATURES,
    Interval,
    difference_interval,
    frechet_distance,
    share_interval,
)
from numpy.typing import NDArray

__all__ = ["TITLES", "TRUTHS", "Results", "Row", "decibels", "shown", "truth_cells"]

Row = dict[str, Any]
Values = NDArray[np.float64]

TITLES = {
    "t2v-20": "text-to-video, 20 guided steps",
    "t2v-8": "text-to-video, 8 guided steps",
    "lora-4": "4-step LoRA, no guidance",
    "i2v-20": "image-to-video, 20 guided steps",
    "i2v-8": "image-to-video, 8 guided steps",
}


def decibels(row: Row, kind: str = "decoded") -> Values:
    """PSNR of each clip to the plain run; latents by the largest range of the plain ones."""
    peak = row["peak"] if kind == "latents" else 1.0
    found: Values = 10 * np.log10(peak / np.maximum(np.asarray(row[kind]), 1e-10))
    return found


PLAIN_20 = {"t2v-20": "t2v-20", "t2v-8": "t2v-20", "lora-4": "t2v-20", "i2v-20": "i2v-20", "i2v-8": "i2v-20"}
"""Of each setting, the one whose plain run has 20 steps of the same model."""


class Results:
    """All lines of ``results.jsonl``, or of the ``results.jsonl.gz`` that is kept; the last one of an id counts."""

    def __init__(self, folder: Path) -> None:
        rows: dict[str, Row] = {}
        path = folder / "results.jsonl"
        data = path.read_bytes() if path.exists() else gzip.decompress((folder / "results.jsonl.gz").read_bytes())
        for line in data.decode().splitlines():
            row = json.loads(line)
            if "error" not in row or row["id"] not in rows:
                rows[row["id"]] = row
        for row in rows.values():
            if not np.isfinite(row.get("decoded", 0.0)).all():
                row["error"] = "the clips are not finite"
        self.failed = [row for row in rows.values() if "error" in row]
        self.all = list(rows.values())
        self.rows = [row for row in rows.values() if "decoded" in row and "error" not in row]
        self.facts: Row = json.loads((folder / "facts.json").read_text(encoding="utf-8"))

    def of(self, setting: str, *parts: str) -> list[Row]:
        """Rows of some parts of a setting, the cheapest last; a recipe that several budgets led to is there once."""
        found: dict[object, Row] = {}
        for row in self.rows:
            if row["setting"] == setting and row["part"] in parts:
                found.setdefault(tuple(row["moves"]) if "moves" in row else row["id"], row)
        return sorted(found.values(), key=lambda row: -row["cost"])

    def settings(self) -> list[str]:
        """Those that there is something of."""
        present = {row["setting"] for row in self.rows}
        return [name for name in TITLES if name in present]

    def rival(self, setting: str, cost: float, clips: int, *parts: str) -> Values | None:
        """Clip by clip, the best that fewer steps reach at a cost, in dB: between two numbers of steps, on the line.

        With `parts`, all that costs as much or less is a rival: any number of steps, and rows of those parts.
        """
        steps = [row for row in self.of(setting, "fewer steps") if len(row["decoded"]) >= clips]
        curve = {round(row["cost"]): decibels(row)[:clips] for row in steps}
        below, above = math.floor(cost + 1e-6), math.ceil(cost - 1e-6)
        best: Values | None = None
        if below in curve and above in curve:
            share = cost - below if above > below else 0.0
            best = (1 - share) * curve[below] + share * curve[above]
        elif below in curve:
            best = curve[below]
        for row in self.of(setting, "fewer steps", *parts) if parts else ():
            if row["cost"] <= cost + 0.02 and len(row["decoded"]) >= clips:
                found = decibels(row)[:clips]
                if best is None or found.mean() > best.mean():
                    best = found
        return best

    def lead(self, row: Row, *parts: str) -> Interval | None:
        """How far a row is above its rivals at equal cost, in dB, clip by clip."""
        mine = decibels(row)
        other = self.rival(row["setting"], row["cost"], len(mine), *parts)
        return None if other is None else difference_interval(mine.tolist(), other.tolist())


TRUTHS = ["right, %", "as sound, %", "speed", "Frechet"]
_NAMES = list(FEATURES)
_HIGHER_IS_WORSE = ("log_path_error", "log_jerk", "duplicates", "same_scene", "tile_error")
_LOWER_IS_WORSE = ("speed", "sharpness")


def sound(row: Row, plain: Row, share: float = 0.98) -> list[bool]:
    """Of each clip, whether no measure of motion and ground is worse than in `share` of the plain run's clips."""
    mine, theirs = np.asarray(row["features"]), np.asarray(plain["features"])
    found = np.ones(len(mine), dtype=bool)
    for names, sign in ((_HIGHER_IS_WORSE, 1), (_LOWER_IS_WORSE, -1)):
        for column in map(_NAMES.index, names):
            limit = np.quantile(sign * theirs[:, column], share, method="higher")
            found &= sign * mine[:, column] <= limit
    return [bool(value) for value in found]


def truth_cells(row: Row, results: Results) -> list[str]:
    """Right, as sound as the plain 20 steps, the ground's speed, and the Frechet distance from clips of the world."""
    if "right" not in row:
        return ["-"] * len(TRUTHS)
    plain = next((r for r in results.of(PLAIN_20[row["setting"]], "plain")), None)
    marks = [row["right"]] + ([sound(row, plain)] if plain is not None else [])
    found = [share_interval(sum(mark), len(mark)) for mark in marks]
    cells = [f"{100 * of.estimate:.0f} [{100 * of.low:.0f}, {100 * of.high:.0f}]" for of in found]
    cells += ["-"] * (2 - len(cells))
    speeds = np.asarray(row["features"])[:, _NAMES.index("speed")] * FEATURES["speed"]
    cells.append(f"{np.median(speeds):.2f}")
    real = next((other["features"] for other in results.all if other["part"] == "real"), None)
    # Only sets of equal size have comparable distances.
    if real is None or len(real) != len(row["features"]) or not np.isfinite(row["features"]).all():
        return [*cells, "-"]
    return [*cells, shown(frechet(row["features"], real))]


def frechet(made: Sequence[Sequence[float]], real: Sequence[Sequence[float]], draws: int = 100) -> Interval:
    """Of two sets of features; the interval is by the bootstrap over the clips that were made, around the estimate."""
    first, second = torch.tensor(made), torch.tensor(real)
    generator = torch.Generator().manual_seed(0)
    estimate = frechet_distance(first, second)
    picks = torch.randint(len(first), (draws, len(first)), generator=generator)
    again = torch.tensor([frechet_distance(first[pick], second) for pick in picks])
    half = float(again.quantile(0.975) - again.quantile(0.025)) / 2
    return Interval(estimate, estimate - half, estimate + half)


def shown(found: Interval) -> str:
    return f"{found.estimate:.2f} ± {(found.high - found.low) / 2:.2f}"
