"""Draw seconds against clips from what `suite.py` wrote.

python benchmarks/figure.py benchmarks/results/*.json --output benchmarks/results/seconds.png
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure

VARIANTS = {
    "baseline": "without halfframe",
    "self-duplicate": "half the frames",
    "fewer": "fewer steps at that cost, without halfframe",
    "self-duplicate+cfg": "half the frames, guidance truncated",
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("results", type=Path, nargs="+", help="suite.json of one machine")
    parser.add_argument("--output", type=Path, required=True)
    arguments = parser.parse_args()
    clips: dict[str, dict[str, Any]] = {}
    devices = set()
    for path in arguments.results:
        data = json.loads(path.read_text())
        devices.add(data["facts"]["device"])
        for section, lines in zip(data["sections"], data["figures"], strict=True):
            if not section["offload"]:
                rival = next(line for line in lines if "fewer steps" in line["name"])  # the dearest comes first
                clips[section["clip"]] = {"fewer": rival, **{line["name"]: line for line in lines}}
    if len(devices) != 1:
        raise SystemExit(f"results of one machine are needed, not of {', '.join(sorted(devices))}")
    draw(clips, devices.pop()).savefig(arguments.output)


def draw(clips: dict[str, dict[str, Any]], device: str) -> Figure:
    """Bars in groups, one per clip, the speed-up on each; hatched where it is extrapolated."""
    figure = Figure(figsize=(9, 4), dpi=120, layout="constrained")
    axes = figure.subplots()
    width = 0.8 / len(VARIANTS)
    for number, (name, label) in enumerate(VARIANTS.items()):
        lines = [lines[name] for lines in clips.values()]
        bars = axes.bar(
            [group + (number - (len(VARIANTS) - 1) / 2) * width for group in range(len(lines))],
            [line["seconds"] for line in lines],
            width,
            label=label,
        )
        for bar, line in zip(bars, lines, strict=True):
            bar.set_hatch("//" if line["extrapolated"] else "")
            bar.set_edgecolor("white")
        axes.bar_label(bars, [f"{line['seconds']:.0f} s\n{line['speedup']:.2f}x" for line in lines], fontsize=8)
    names = [clip.split("x", 1) for clip in clips]
    axes.set_xticks(range(len(clips)), [f"{count} frames {size}" for count, size in names])
    axes.set_ylabel("seconds for one clip")
    axes.margins(y=0.15)
    axes.set_title(f"{device}, A14B sizes, random weights; hatched: extrapolated from a few steps", fontsize=9)
    axes.legend(frameon=False, loc="upper left")
    return figure


if __name__ == "__main__":
    main()
