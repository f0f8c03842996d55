"""Draws an example workflow from its file: ``python -m tests.comfyui.draw workflow.json picture.png``."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

LINKS = {
    "MODEL": "#b39ddb",
    "CLIP": "#ffd500",
    "VAE": "#ff6e6e",
    "CONDITIONING": "#ffa931",
    "LATENT": "#ff9cf9",
    "IMAGE": "#64b5f6",
    "VIDEO": "#8ae2b4",
}
TITLE, ROW = 30, 20
NAMES = ("strategy", "stride", "first_steps", "skip_guidance", "start_percent", "end_percent", "where")
"""Inputs of *Halfframe*, in the order of a file's values."""


def slot(node: dict[str, Any], index: int, out: bool) -> tuple[float, float]:
    """Where a link begins or ends."""
    x, y = node["pos"]
    return x + (node["size"][0] if out else 0), y + 10 + ROW * index


def draw(workflow: dict[str, Any], picture: Path) -> None:
    """Boxes for nodes, curves for links."""
    from matplotlib.figure import Figure
    from matplotlib.patches import FancyBboxPatch, PathPatch
    from matplotlib.patches import Path as Curve

    nodes = {node["id"]: node for node in workflow["nodes"]}
    right = max(n["pos"][0] + n["size"][0] for n in nodes.values())
    top = min(n["pos"][1] for n in nodes.values()) - TITLE
    bottom = max(n["pos"][1] + n["size"][1] for n in nodes.values())
    figure = Figure(figsize=((right + 40) / 130, (bottom - top + 40) / 130), facecolor="#202020")
    axes = figure.add_axes((0, 0, 1, 1))
    axes.set_axis_off()
    axes.set_xlim(-20, right + 20)
    axes.set_ylim(bottom + 20, top - 20)
    for _, source, out, target, into, kind in workflow["links"]:
        (x0, y0), (x1, y1) = slot(nodes[source], out, True), slot(nodes[target], into, False)
        bend = max(30.0, abs(x1 - x0) / 3)
        curve = Curve([(x0, y0), (x0 + bend, y0), (x1 - bend, y1), (x1, y1)], [1, 4, 4, 4])
        axes.add_patch(PathPatch(curve, fill=False, color=LINKS[kind], linewidth=1.5))
    for node in nodes.values():
        _draw_node(axes, node, FancyBboxPatch)
    figure.savefig(picture, dpi=110)


def _draw_node(axes: Any, node: dict[str, Any], box: Any) -> None:
    (x, y), (width, height) = node["pos"], node["size"]
    ours = node["type"].startswith("Halfframe")
    head, body = ("#4a5fa0", "#33416e") if ours else (node.get("color", "#333333"), node.get("bgcolor", "#353535"))
    style = "round,pad=0,rounding_size=6"
    axes.add_patch(box((x, y - TITLE), width, height + TITLE, style, facecolor=body, edgecolor="#101010"))
    axes.add_patch(box((x, y - TITLE), width, TITLE, style, facecolor=head, edgecolor="#101010"))
    axes.text(x + 10, y - TITLE / 2, node.get("title", node["type"]), color="white", fontsize=8, va="center")
    rows = max(len(node["inputs"]), len(node["outputs"]))
    for index, entry in enumerate(node["inputs"]):
        axes.text(x + 8, y + 10 + ROW * index, entry["name"], color="#cccccc", fontsize=6, va="center")
        axes.plot(x, y + 10 + ROW * index, "o", color=LINKS[entry["type"]], markersize=4)
    for index, entry in enumerate(node["outputs"]):
        at = y + 10 + ROW * index
        axes.text(x + width - 8, at, entry["name"], color="#cccccc", fontsize=6, va="center", ha="right")
        axes.plot(x + width, at, "o", color=LINKS.get(entry["type"], "#999999"), markersize=4)
    values = [str(value) for value in node.get("widgets_values", ()) if str(value).strip()]
    if ours:
        values = [f"{name}:  {value}" for name, value in zip(NAMES, values, strict=False)]
    room = int((height - ROW * rows) // 17)
    for index, value in enumerate(values[: max(room, 1)]):
        characters = int(width / 5.4)
        text = value if len(value) <= characters else value[: characters - 3] + "..."
        if not text.isascii():
            text = "(the models' usual negative prompt)"
        axes.text(x + 12, y + ROW * rows + 12 + 17 * index, text, color="#dddddd", fontsize=6, va="center")


if __name__ == "__main__":
    draw(json.loads(Path(sys.argv[1]).read_text(encoding="utf-8")), Path(sys.argv[2]))
