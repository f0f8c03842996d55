"""Of what ``run.py`` measured, on any machine: ``STUDY.md``, one ``frontier-*.png`` a setting, and ``recipes/``.

python tables.py --folder study --output ..
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

import numpy as np
from halfframe_tinywan.truth import Interval, mean_interval, share_interval

from halfframe import Recipe
from halfframe.strategies.recipe import unweighted
from results import TITLES, TRUTHS, Results, Row, decibels, shown, truth_cells

# Tables.


def markdown(header: Sequence[str], rows: Iterable[Sequence[str]]) -> list[str]:
    """A table whose first column is text."""
    return [
        "| " + " | ".join(header) + " |",
        "| --- |" + " ---: |" * (len(header) - 1),
        *("| " + " | ".join(row) + " |" for row in rows),
        "",
    ]


def _heading(setting: str) -> str:
    return TITLES[setting][0].upper() + TITLES[setting][1:]


def calibration(results: Results) -> list[str]:
    """Fewer steps to the plain run."""
    lines = ["## Fewer steps", ""]
    for row in results.all:
        if row["part"] == "real" and "right" in row:
            valid = share_interval(sum(row["valid"]), len(row["valid"])).estimate
            lines += [
                f"Clips of the world itself, through the VAE: {truth_cells(row, results)[0]} % are right, "
                f"{100 * valid:.0f} % are `valid` by the limits of `halfframe_tinywan.truth`. No clip of any model is: "
                "tiles merge, and the ground is not quite the same when it comes back into "
                "view. So the tables ask whether a "
                "clip is *as sound* as those of the plain 20 steps.",
                "",
            ]
    for setting in results.settings():
        rows = results.of(setting, "fewer steps", "dropped")
        if not rows:
            continue
        lines += [f"{_heading(setting)}: PSNR in dB to the plain run, and measures of the clips.", ""]
        plain = results.of(setting, "plain")
        cells = [
            [
                row["label"],
                "-" if row["part"] == "plain" else shown(mean_interval(decibels(row).tolist())),
                "-" if row["part"] == "plain" else shown(mean_interval(decibels(row, "latents").tolist())),
                *truth_cells(row, results),
            ]
            for row in [*plain, *rows]
        ]
        lines += markdown(["", "decoded", "latents", *TRUTHS], cells)
        for row in plain:
            if "first_frame" in row:
                first = mean_interval((-10 * np.log10(np.maximum(row["first_frame"], 1e-10))).tolist())
                lines += [f"Its first frame is {shown(first)} dB from the image that was given.", ""]
    return lines


def order(results: Results) -> list[str]:
    """Whether MagCache and TaylorSeer are nearer than fewer steps, at about 1.5x and 1.8x."""
    lines = ["## Do known methods rank as on real models?", ""]
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
                        shown(mean_interval(decibels(best).tolist())),
                        shown(lead),
                        said,
                    ]
                )
    if not cells:
        return []
    lines += [
        "For each method, the best setting within 0.15 of the speed-up, by its lead over fewer steps at equal cost, "
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
            apart = ["-" if lead is None else shown(lead) for lead in leads]
            psnr = shown(mean_interval(decibels(row).tolist()))
            clips = len(row["decoded"])
            few = "" if clips in (results.facts["clips"], results.facts["single"]) else f" ({clips} clips)"
            cells.append([name(row) + few, f"{row['cost']:.2f}", psnr, *apart, *truth_cells(row, results)])
        header = ["", "cost", "PSNR", "to fewer steps", "to the best rival", *TRUTHS]
        lines += [f"### {_heading(setting)}", ""]
        lines += markdown(header, cells)
    return lines


def recipe_name(row: Row) -> str:
    """Its moves without weights, equal ones counted."""
    runs: list[tuple[str, int]] = []
    for move in map(unweighted, row["moves"]):
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
        "How near are the clips of faster settings to the plain run of the same seed, and how "
        "good are they? TinyWan is "
        "a toy: a small Wan2.2 trained on a drawn world. "
        + ("**Random weights: a rehearsal.**" if facts["random_weights"] else ""),
        "",
        f"{facts['clips']} held-out clips of {facts['video_frames']} frames of 96x96; methods that decide once for a "
        f"whole batch were run clip by clip, on the first {facts['single']}. {facts['device']}, "
        f"PyTorch {facts['torch']}, "
        f"{facts['precision']}{facts.get('others', '')}. "
        "Cost is in full steps at the sizes of A14B, 81 frames of 1280x720. PSNR is in dB to the "
        "plain run, the mean over clips ± half of the 95 % bootstrap interval. *Right* and *as sound* have Wilson's "
        "intervals. A clip is as sound if none of seven measures of motion and ground is worse "
        "than in 98 % of the plain 20-step "
        "clips. *Speed* is the ground's median speed in pixels per video frame. "
        "Leads are differences in PSNR at equal cost, clip by clip. *To fewer steps*: with full guidance, interpolated "
        "between two numbers of steps. *To the best rival*: the best run of equal or lower cost, among fewer steps, "
        "fewer steps with truncated guidance, and dropped steps. "
        "*Frechet* is the distance from clips of the world itself, as the VAE reconstructs them, on the features of "
        "`halfframe_tinywan.truth`.",
        "",
    ]
    plots = [f"![{TITLES[setting]}: cost against PSNR](frontier-{setting}.png)" for setting in plotted(results)]
    lines = [*head, *plots, "", *calibration(results), *order(results)]
    lines += parts(
        results,
        "Recipes",
        "recipe",
        f"Tuned on {facts['tuning']} clips, measured on the others. Their weights are in `recipes/`.",
        recipe_name,
    )
    lines += parts(results, "Strategies", "strategy", "Over the whole high-noise phase, or its first steps (`until`).")
    lines += parts(
        results,
        "Caches",
        "cache",
        "The caches of diffusers, and cache-dit, each over its range. Cost counts the parts of each block that were "
        "computed; a first block that is always computed counts as one of 40. "
        "PyramidAttentionBroadcast and FasterCache "
        "keep one state for both guidance passes, so one pass gets the other's attention. "
        "MagCache uses the ratios that "
        "its own calibration prints for the conditional passes.",
    )
    if results.failed:
        lines += ["## Failed", ""]
        lines += [f"- `{row['id']}`: {row['error'].strip().splitlines()[-1]}" for row in results.failed]
        lines.append("")
    return "\n".join(lines)


# Plots.


def plotted(results: Results) -> list[str]:
    """Settings of which more than the plain run is there."""
    return [setting for setting in results.settings() if results.of(setting, "fewer steps")]


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
    axes.set_title(TITLES[setting])
    axes.grid(alpha=0.3)
    axes.legend(fontsize=8)
    figure.tight_layout()
    figure.savefig(path, dpi=130)
    pyplot.close(figure)


def save_recipes(results: Results, folder: Path) -> None:
    """The recipes of the tables, weights and all."""
    folder.mkdir(exist_ok=True)
    for old in folder.glob("*.json"):
        old.unlink()
    for setting in results.settings():
        for row in results.of(setting, "recipe"):
            measured = {"decibels": round(float(decibels(row).mean()), 2), "clips": len(row["decoded"])}
            recipe = Recipe(tuple(row["moves"]), measured=measured)
            recipe.save(folder / f"{setting}-{row['cost']:.2f}.json")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, required=True, help="of the results")
    parser.add_argument("--output", type=Path, help="folder for all of these; by default that of the results")
    found = parser.parse_args()
    output = found.output or found.folder
    output.mkdir(parents=True, exist_ok=True)
    results = Results(found.folder)
    (output / "STUDY.md").write_text(text(results), encoding="utf-8")
    for setting in plotted(results):
        plot(results, setting, output / f"frontier-{setting}.png")
    save_recipes(results, output / "recipes")


if __name__ == "__main__":
    main()
