"""One page to look at: clips that play in step, tables, and cost against fidelity, in a file that needs no other."""

from __future__ import annotations

import base64
import html
import importlib.resources
import io
import json
import math
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from halfframe.compare.extras import require
from halfframe.compare.tables import Table
from halfframe.compare.videos import FPS

__all__ = ["Bar", "Frontier", "clip_sheets", "page", "read_sheets"]

_WIDEST = 400
"""Pixels: wider clips are shrunk, since several stand beside each other."""
_LOSSLESS = 4_000_000
"""Pixels of a clip up to which its frames are stored without loss."""
_LARGEST = 60_000_000
"""Characters of clips on one page; those of further cases are left out, and a note says so."""


@dataclass(frozen=True, slots=True)
class Frontier:
    """Cost against fidelity.

    Attributes:
        x: name of the horizontal axis.
        y: name of the vertical axis.
        groups: points ``(name, x, y)`` by what they are; a line joins the best of each group.
    """

    x: str
    y: str
    groups: Mapping[str, Sequence[tuple[str, float, float]]]


@dataclass(frozen=True, slots=True)
class Bar:
    """What one variant took: `label` is written behind a bar of `length`, in the colour of its kind."""

    name: str
    length: float
    label: str
    accelerated: bool


def page(
    title: str,
    lead: str,
    tables: Iterable[Table],
    cases: Sequence[Mapping[str, Any]] = (),
    frontier: Frontier | None = None,
    notes: Iterable[str] = (),
    bars: Sequence[Bar] = (),
) -> str:
    """The page as text; nothing in the arguments is taken as HTML.

    Args:
        title: of the page.
        lead: a line below it.
        tables: in their order.
        cases: of `clip_sheets`.
        frontier: None for none.
        notes: a list at the end.
        bars: of a plot of seconds.
    """
    kept: list[Mapping[str, Any]] = []
    size, notes = 0, list(notes)
    for case in cases:
        size += sum(len(clip["sheet"]) for clip in case["clips"])
        if kept and size > _LARGEST:
            notes.append(f"clips of {len(cases) - len(kept)} of {len(cases)} cases are not on this page, but beside it")
            break
        kept.append(case)
    # "<" and what separates lines in JavaScript cannot end the script or begin a comment in it.
    data = json.dumps(kept).replace("<", "\\u003c")
    shown = [f'<div class="wide">{table.html()}</div>' for table in tables]
    parts = {
        "title": html.escape(title),
        "lead": html.escape(lead),
        "series": "\n".join(
            f"#frontier .series-{i} {{ fill: var(--series-{i}); stroke: var(--series-{i}); }}" for i in range(4)
        ),
        "frontier": "" if frontier is None else _drawn(frontier),
        "bars": _barred(bars),
        "tables": "\n".join(["<h2>Figures</h2>", *shown]),
        "notes": '<ul class="notes">' + "".join(f"<li>{html.escape(note)}</li>" for note in notes) + "</ul>",
        "data": data,
    }
    template = importlib.resources.files("halfframe.compare").joinpath("report_page.html").read_text(encoding="utf-8")
    return re.sub(r"\{\{(\w+)\}\}", lambda match: parts[match[1]], template)


def clip_sheets(key: str, title: str, clips: Mapping[str, npt.NDArray[np.uint8]], fps: float = FPS) -> dict[str, Any]:
    """Clips ``(F, H, W, 3)`` of one size as pictures that hold all frames in rows, for `page`.

    Args:
        key: to know the case by.
        title: to be read.
        clips: the one that the others are compared with comes first.
        fps: frames per second.
    """
    image = require("PIL.Image", "write the report")
    first = next(iter(clips.values()))
    frames, height, width = first.shape[:3]
    small = (min(width, _WIDEST), max(1, round(height * min(width, _WIDEST) / width)))
    columns = math.ceil(math.sqrt(frames * small[1] / small[0]))  # about square
    lossless = frames * small[0] * small[1] <= _LOSSLESS
    sheets = []
    for name, clip in clips.items():
        sheet = image.new("RGB", (columns * small[0], math.ceil(len(clip) / columns) * small[1]))
        for number, frame in enumerate(clip):
            picture = image.fromarray(np.ascontiguousarray(frame))
            if picture.size != small:
                picture = picture.resize(small, image.Resampling.LANCZOS)
            sheet.paste(picture, (number % columns * small[0], number // columns * small[1]))
        stream = io.BytesIO()
        sheet.save(stream, "WEBP", lossless=lossless, quality=100 if lossless else 90, method=2 if lossless else 4)
        sheets.append({"name": name, "sheet": "data:image/webp;base64," + base64.b64encode(stream.getvalue()).decode()})
    how = [f"{frames} frames of {width}x{height}"]
    how += [f"shown at {small[0]}x{small[1]}"] if small[0] != width else []
    how += [] if lossless else ["compressed with loss; the figures are of the clips as they were made"]
    return {
        "key": key,
        "title": title,
        "fps": fps,
        "frames": frames,
        "width": small[0],
        "height": small[1],
        "columns": columns,
        "shown": ", ".join(how),
        "clips": sheets,
    }


def read_sheets(path: Path) -> list[dict[str, Any]]:
    """The cases of a page that was written earlier; none if it cannot be read."""
    try:
        found = re.search(
            r'<script type="application/json" id="data">(.*?)</script>', path.read_text("utf-8"), re.DOTALL
        )
        return list(json.loads(found[1])) if found else []
    except (OSError, ValueError):
        return []


def _barred(bars: Sequence[Bar]) -> str:
    """The plot of seconds."""
    longest = max((bar.length for bar in bars), default=0.0) or 1.0
    rows = [
        f'<dt>{html.escape(bar.name)}</dt><dd><span class="{"own" if bar.accelerated else "plain"}" '
        f'style="width:{60 * bar.length / longest:.1f}%"></span> {html.escape(bar.label)}</dd>'
        for bar in bars
    ]
    return f'<h2>Seconds</h2><dl id="bars">{"".join(rows)}</dl>' if rows else ""


def _drawn(frontier: Frontier) -> str:
    """The frontier as SVG; a point is named when it is pointed at or reached by the keyboard."""
    points = [point for group in frontier.groups.values() for point in group]
    if not points:
        return ""
    left, top, width, height = 64, 16, 400, 240
    xs, ys = _ticks([x for _, x, _ in points]), _ticks([y for _, _, y in points])

    def place(x: float, y: float) -> tuple[float, float]:
        across, up = (x - xs[0]) / (xs[-1] - xs[0]), (y - ys[0]) / (ys[-1] - ys[0])
        return round(left + width * across, 1), round(top + height * (1 - up), 1)

    lines = []
    for x in xs:
        at = place(x, ys[0])[0]
        lines.append(f'<line class="axis" x1="{at}" x2="{at}" y1="{top}" y2="{top + height}"/>')
        lines.append(f'<text x="{at}" y="{top + height + 18}" text-anchor="middle">{x:g}</text>')
    for y in ys:
        at = place(xs[0], y)[1]
        lines.append(f'<line class="axis" x1="{left}" x2="{left + width}" y1="{at}" y2="{at}"/>')
        lines.append(f'<text x="{left - 8}" y="{at + 4}" text-anchor="end">{y:g}</text>')
    legend = 0
    for index, (name, group) in enumerate(frontier.groups.items()):
        color = f"series-{index % 4}"
        placed = sorted((place(x, y), text, x, y) for text, x, y in group)
        best = [  # those that no cheaper one is as good as
            point for number, point in enumerate(placed) if all(point[3] > other[3] for other in placed[:number])
        ]
        if len(best) > 1:
            path = " ".join(f"{x},{y}" for (x, y), *_ in best)
            lines.append(f'<polyline class="path {color}" style="fill:none" points="{path}"/>')
        for (x, y), text, cost, quality in placed:
            label = html.escape(f"{text}: {frontier.x} {cost:.3g}, {frontier.y} {quality:.3g}")
            lines.append(f'<circle class="point {color}" tabindex="0" cx="{x}" cy="{y}" r="6">')
            lines.append(f"<title>{label}</title></circle>")
        if placed:
            y = top + height + 62 + 20 * legend
            lines.append(f'<circle class="{color}" cx="{left + 6}" cy="{y - 4}" r="5"/>')
            lines.append(f'<text class="label" x="{left + 18}" y="{y}">{html.escape(name)}</text>')
            legend += 1
    middle = top + height / 2
    lines.append(f'<text class="label" x="{left + width / 2}" y="{top + height + 38}" text-anchor="middle">')
    lines.append(f"{html.escape(frontier.x)}</text>")
    lines.append(f'<text class="label" transform="translate(16 {middle}) rotate(-90)" text-anchor="middle">')
    lines.append(f"{html.escape(frontier.y)}</text>")
    size = f"0 0 {left + width + 24} {top + height + 58 + 20 * legend}"
    svg = f'<svg viewBox="{size}" role="img" aria-label="cost against fidelity">{"".join(lines)}</svg>'
    return (
        f'<section id="frontier"><h2>Cost against fidelity</h2><div class="wide">{svg}</div>'
        '<p id="named" aria-live="polite">point at a dot to name it</p></section>'
    )


def _ticks(values: Sequence[float]) -> list[float]:
    """Round numbers, evenly spaced, around all of `values`: at least two."""
    low, high = min(values), max(values)
    span = (high - low) or abs(high) or 1.0
    rough = span / 5
    unit = 10.0 ** math.floor(math.log10(rough))
    step = next(unit * factor for factor in (1, 2, 5, 10) if unit * factor >= rough)
    first, last = math.floor(low / step), math.ceil(high / step)
    return [round(step * count, 10) for count in range(first, max(last, first + 1) + 1)]
