"""Draw seconds against clips from what `suite.py` wrote: its comparison.json, or the older files in results/.

python benchmarks/figure.py benchmarks/results/h200-*.json --output benchmarks/results/seconds.png
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
    parser.add_argument("results", type=Path, nargs="+", help="of one machine")
    parser.add_argument("--output", type=Path, required=True)
    arguments = parser.parse_args()
    clips: dict[str, dict[str, Any]] = {}
    machines = set()
    for data in (json.loads(path.read_text()) for path in arguments.results):
        facts, older = data["facts"], zip(data.get("sections", ()), data.get("figures", ()), strict=True)
        machines.add(facts.get("machine", facts.get("device")))
        tables = [(one["clip"].replace("x", " frames ", 1), lines) for one, lines in older if not one["offload"]]
        if "variants" in data and not facts.get("offload_model"):
            tables = [(facts["video"], data["variants"])]
        for clip, lines in tables:
            rival = next(line for line in lines if "fewer steps" in line["name"])
            clips[clip] = {"fewer": rival, **{line["name"]: line for line in lines}}
    if len(machines) != 1:
        raise SystemExit(f"results of one machine are needed, not of {', '.join(sorted(machines))}")
    draw(clips, machines.pop()).savefig(arguments.output)


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
    axes.set_xticks(range(len(clips)), clips)
    axes.set_ylabel("seconds for one clip")
    axes.margins(y=0.15)
    axes.set_title(f"{device}, A14B sizes, random weights; hatched: extrapolated from a few steps", fontsize=9)
    axes.legend(frameon=False, loc="upper left")
    return figure


if __name__ == "__main__":
    main()
