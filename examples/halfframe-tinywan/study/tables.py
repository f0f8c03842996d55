"""Tables and plots of what ``run.py`` measured, on any machine: ``STUDY.md`` and one ``frontier-*.png`` a setting.

python tables.py --folder study --output ..
"""

from __future__ import annotations

import argparse
import json
import math
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from halfframe_tinywan.truth import (
    Interval,
    difference_interval,
    frechet_distance,
    mean_interval,
    share_interval,
)
from numpy.typing import NDArray

Row = dict[str, Any]
Values = NDArray[np.float64]

_TITLES = {
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


class Results:
    """All lines; the last one of an id counts."""

    def __init__(self, folder: Path) -> None:
        rows: dict[str, Row] = {}
        for line in (folder / "results.jsonl").read_text(encoding="utf-8").splitlines():
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
        """Rows of some parts of a setting, the cheapest last."""
        found = [row for row in self.rows if row["setting"] == setting and row["part"] in parts]
        return sorted(found, key=lambda row: -row["cost"])

    def settings(self) -> list[str]:
        """Those that there is something of."""
        present = {row["setting"] for row in self.rows}
        return [name for name in _TITLES if name in present]

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


# Tables.


def markdown(header: Sequence[str], rows: Iterable[Sequence[str]]) -> list[str]:
    """A table whose first column is text."""
    return [
        "| " + " | ".join(header) + " |",
        "| --- |" + " ---: |" * (len(header) - 1),
        *("| " + " | ".join(row) + " |" for row in rows),
        "",
    ]


_TRUTHS = ["right, %", "valid, %", "Frechet"]


def truth_cells(row: Row, results: Results) -> list[str]:
    """Right, valid and the Frechet distance from clips of the world, which only sets of equal size have in common."""
    if "right" not in row:
        return ["-"] * len(_TRUTHS)
    cells = []
    for key in ("right", "valid"):
        found = share_interval(sum(row[key]), len(row[key]))
        cells.append(f"{100 * found.estimate:.0f} [{100 * found.low:.0f}, {100 * found.high:.0f}]")
    real = next((other["features"] for other in results.all if other["part"] == "real"), None)
    if real is None or len(real) != len(row["features"]) or not np.isfinite(row["features"]).all():
        return [*cells, "-"]
    return [*cells, _shown(frechet(row["features"], real))]


def frechet(made: Sequence[Sequence[float]], real: Sequence[Sequence[float]], draws: int = 100) -> Interval:
    """Of two sets of features; the interval is by the bootstrap over the clips that were made, around the estimate."""
    first, second = torch.tensor(made), torch.tensor(real)
    generator = torch.Generator().manual_seed(0)
    estimate = frechet_distance(first, second)
    picks = torch.randint(len(first), (draws, len(first)), generator=generator)
    again = torch.tensor([frechet_distance(first[pick], second) for pick in picks])
    half = float(again.quantile(0.975) - again.quantile(0.025)) / 2
    return Interval(estimate, estimate - half, estimate + half)


def _heading(setting: str) -> str:
    return _TITLES[setting][0].upper() + _TITLES[setting][1:]


def _shown(found: Interval) -> str:
    return f"{found.estimate:.2f} ± {(found.high - found.low) / 2:.2f}"


def calibration(results: Results) -> list[str]:
    """Fewer steps to the plain run."""
    lines = ["## Fewer steps", ""]
    for row in results.all:
        if row["part"] == "real" and "right" in row:
            right, valid, _ = truth_cells(row, results)
            lines += [f"Clips of the world itself, through the VAE: {right} % are right, {valid} % are valid.", ""]
    for setting in results.settings():
        rows = results.of(setting, "fewer steps", "dropped")
        if not rows:
            continue
        lines += [f"{_heading(setting)}: PSNR in dB to it, and what the clips show.", ""]
        plain = results.of(setting, "plain")
        cells = [
            [
                row["label"],
                "-" if row["part"] == "plain" else _shown(mean_interval(decibels(row).tolist())),
                "-" if row["part"] == "plain" else _shown(mean_interval(decibels(row, "latents").tolist())),
                *truth_cells(row, results),
            ]
            for row in [*plain, *rows]
        ]
        lines += markdown(["", "decoded", "latents", *_TRUTHS], cells)
        for row in plain:
            if "first_frame" in row:
                first = mean_interval((-10 * np.log10(np.maximum(row["first_frame"], 1e-10))).tolist())
                lines += [f"Its first frame is {_shown(first)} dB from the image that was given.", ""]
    return lines


def order(results: Results) -> list[str]:
    """Whether MagCache and TaylorSeer are nearer than fewer steps, at about 1.5x and 1.8x."""
    lines = ["## Do known methods come in their known order?", ""]
    cells = []
    for setting in ("t2v-20", "i2v-20"):
        for method in ("MagCache", "TaylorSeer"):
            rows = [row for row in results.of(setting, "cache") if row["label"].startswith(method)]
            for speed in (1.5, 1.8):
                steps = int(setting.rpartition("-")[2])
                near = [row for row in rows if steps / (speed + 0.15) <= row["cost"] <= steps / (speed - 0.15)]
                best = max(
                    near, key=lambda row: (results.lead(row) or Interval(-math.inf, 0, 0)).estimate, default=None
                )
                lead = None if best is None else results.lead(best)
                if best is None or lead is None:
                    continue
                said = "nearer" if lead.low > 0 else "further" if lead.high < 0 else "level"
                cells.append(
                    [
                        f"{setting}: {best['label']}",
                        f"{speed}x",
                        f"{best['cost']:.1f}",
                        _shown(mean_interval(decibels(best).tolist())),
                        _shown(lead),
                        said,
                    ]
                )
    if not cells:
        return []
    lines += [
        "The best of each method's settings within 0.15 of the speed-up, by its lead over fewer steps at equal cost, "
        "in dB, clip by clip.",
        "",
    ]
    return lines + markdown(["", "about", "cost", "PSNR", "lead", "than fewer steps"], cells)


def parts(
    results: Results, title: str, part: str, note: str, name: Callable[[Row], str] = lambda row: f"`{row['label']}`"
) -> list[str]:
    """A table a setting of one part."""
    lines = [f"## {title}", "", note, ""]
    for setting in results.settings():
        rows = results.of(setting, part)
        if not rows:
            continue
        plain = results.of(setting, "plain")
        cells = [["plain", f"{row['cost']:.2f}", "-", "-", "-", *truth_cells(row, results)] for row in plain]
        for row in rows:
            leads = [results.lead(row), results.lead(row, "truncated", "dropped")]
            shown = ["-" if lead is None else _shown(lead) for lead in leads]
            psnr = _shown(mean_interval(decibels(row).tolist()))
            cells.append([name(row), f"{row['cost']:.2f}", psnr, *shown, *truth_cells(row, results)])
        header = ["", "cost", "PSNR", "to fewer steps", "to the best rival", *_TRUTHS]
        clips = sorted({len(row["decoded"]) for row in rows})
        lines += [f"### {_heading(setting)}", "", f"{' or '.join(map(str, clips))} clips.", ""]
        lines += markdown(header, cells)
    return lines


def recipe_name(row: Row) -> str:
    """Its moves, equal ones counted."""
    runs: list[tuple[str, int]] = []
    for move in row["moves"]:
        if runs and runs[-1][0] == move:
            runs[-1] = (move, runs[-1][1] + 1)
        else:
            runs.append((move, 1))
    return "`" + " ".join(move if count == 1 else f"{count}x {move}" for move, count in runs) + "`"


def text(results: Results) -> str:
    """All tables."""
    facts = results.facts
    head = [
        "# Study",
        "",
        "How near to the plain run of the same seed, and how good, is what faster settings make? TinyWan is a toy: a "
        "small Wan2.2 trained on a drawn world. "
        + ("**Random weights: a rehearsal.**" if facts["random_weights"] else ""),
        "",
        f"{facts['clips']} held-out clips of {facts['video_frames']} frames of 96x96; methods that decide once for a "
        f"whole batch run clip by clip on the first {facts['single']}. {facts['device']}, PyTorch {facts['torch']}, "
        f"{facts['precision']}. Cost in full steps at the sizes of A14B, 81 frames of 1280x720. PSNR in dB to the "
        "plain run, means over clips, ± half of the 95 % bootstrap interval; right and valid with Wilson's intervals. "
        "Leads are differences at equal cost, clip by clip: to fewer steps with all guidance, on the line between "
        "two numbers of steps; and to the best that costs as much or less: any number of steps, fewer steps with "
        "truncated guidance, dropped steps. "
        "Frechet: distance from clips of the world itself, as the VAE gives them back, on the features of "
        "`halfframe_tinywan.truth`.",
        "",
    ]
    lines = [*head, *calibration(results), *order(results)]
    lines += parts(
        results,
        "Recipes",
        "recipe",
        f"Tuned on {facts['tuning']} clips, judged on the others.",
        recipe_name,
    )
    lines += parts(results, "Strategies", "strategy", "Over the whole high-noise phase, or its first steps (`until`).")
    lines += parts(
        results,
        "Caches",
        "cache",
        "Those of diffusers, and cache-dit, each over its range. Cost as counted in what of each block was computed, a "
        "first block that is always computed as one of 40. PyramidAttentionBroadcast and FasterCache keep one state "
        "for both guidance passes, so that one gets the other's attention; MagCache has the ratios that its own "
        "calibration prints for the conditional passes.",
    )
    if results.failed:
        lines += ["## Failed", ""]
        lines += [f"- `{row['id']}`: {row['error'].strip().splitlines()[-1]}" for row in results.failed]
        lines.append("")
    return "\n".join(lines)


# Plots.


def plot(results: Results, setting: str, path: Path) -> None:
    """Cost against PSNR: recipes, fewer steps, truncated guidance, strategies and caches."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(8, 5))
    lines = {"recipe": ("tuned recipes", "o-"), "fewer steps": ("fewer steps", "s--")}
    for part, (name, style) in lines.items():
        points = [(row["cost"], mean_interval(decibels(row).tolist())) for row in results.of(setting, part)]
        if points:
            costs = [cost for cost, _ in points]
            errors = [[of.estimate - of.low for _, of in points], [of.high - of.estimate for _, of in points]]
            axes.errorbar(costs, [of.estimate for _, of in points], errors, fmt=style, capsize=2, label=name, zorder=3)
    full = 0.995 * int(setting.rpartition("-")[2])  # what skips nothing is left out
    groups: dict[str, list[Row]] = {
        "fewer steps, truncated guidance": results.of(setting, "truncated"),
        "steps dropped": results.of(setting, "dropped"),
        "strategies": results.of(setting, "strategy"),
    }
    for row in results.of(setting, "cache"):
        groups.setdefault(row["label"].split()[0], []).append(row)
    groups = {name: [row for row in rows if row["cost"] < full] for name, rows in groups.items()}
    for marker, (name, rows) in zip("^<.xX*dPpv>", ((n, r) for n, r in groups.items() if r), strict=False):
        axes.scatter(
            [row["cost"] for row in rows],
            [decibels(row).mean() for row in rows],
            marker=marker,
            s=24,
            alpha=0.75,
            label=name,
        )
    axes.set_xlabel("cost in full steps (A14B, 81 frames of 1280x720)")
    axes.set_ylabel("PSNR of the decoded clip to the plain run, dB")
    axes.set_title(_TITLES[setting])
    axes.grid(alpha=0.3)
    axes.legend(fontsize=8)
    figure.tight_layout()
    figure.savefig(path, dpi=130)
    pyplot.close(figure)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, required=True, help="of the results")
    parser.add_argument("--output", type=Path, help="folder for STUDY.md and the plots; by default that of the results")
    found = parser.parse_args()
    output = found.output or found.folder
    output.mkdir(parents=True, exist_ok=True)
    results = Results(found.folder)
    (output / "STUDY.md").write_text(text(results), encoding="utf-8")
    for setting in results.settings():
        plot(results, setting, output / f"frontier-{setting}.png")


if __name__ == "__main__":
    main()
