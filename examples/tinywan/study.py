"""What each strategy costs and what it does to the clip, on TinyWan, beside fewer steps and skipped high-noise steps.

    python examples/tinywan/study.py run --folder study --clips 128
    python examples/tinywan/study.py report --folder study

``run`` makes the clips of every variant that ``--folder`` lacks, so it can be stopped and started again; ``report``
writes ``study.md``, ``study.json`` and ``pareto.png`` from what is there. Every variant gets the same prompts and
seeds, drawn apart from the training's. ``--part 1/2`` makes every second clip, so that two GPUs can share.

Cost is the experts' time at the true A14B shapes, 81 frames of 1280x720, as `halfframe.plan` predicts it at the rates
measured on an H200, in full steps; half the frames cost much less than half there. The share of tokens, nearer to what
TinyWan itself saves, stands beside it.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import functools
import json
import random
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from halfframe.cost import H200
from torch import Tensor, multiprocessing

import halfframe
from halfframe.compare import metrics
from halfframe.tinywan import generate, load_diffusers, measure, random_scene
from halfframe.tinywan.clips import Scene, render
from halfframe.tinywan.model import SIDE

REFERENCE_STEPS = 100
BASELINES = (20, 8, 12, 4, 40, REFERENCE_STEPS)


@dataclasses.dataclass(frozen=True)
class Variant:
    """One way to make the clips."""

    steps: int
    strategy: str | None = None
    options: tuple[tuple[str, Any], ...] = ()
    skip_high: int = 1  # every so-manyth high-noise step is made, the others are not in the schedule

    @property
    def name(self) -> str:
        plain = "all frames" if self.options else "plain"
        parts = [self.strategy or (plain if self.skip_high == 1 else f"1 in {self.skip_high} high-noise steps")]
        parts += [f"{key}={value}" for key, value in self.options]
        return f"{self.steps} steps, {' '.join(parts)}"

    @property
    def file(self) -> str:
        return "".join(c if c.isalnum() else "_" for c in self.name)


def variants() -> list[Variant]:
    """Everything that is compared, the most telling first."""
    found = [Variant(steps) for steps in BASELINES]
    found += [Variant(steps) for steps in (13, 5, 9, 3, 10, 7, 6, 11, 14, 15, 16, 18)]
    for steps in (20, 8, 12, 4, 40):
        found += [Variant(steps, name) for name in ("self-duplicate", "interleave", "merge")]
        found += [Variant(steps, name, tuple(o.items())) for o in FIRST_STEP for name in ("merge", "interleave")]
        found += [Variant(steps, None, options) for options in GUIDANCE]
    found += [Variant(steps, None, TRUNCATED) for steps in (5, 6, 7, 10)]
    for steps in (20, 8):
        found += [Variant(steps, "merge", (("stride", 3), ("until", 1), *TRUNCATED))]
        found += [Variant(steps, "self-duplicate", (("noise", "short"),))]
        found += [Variant(steps, name) for name in ("own-noise", "interpolate")]
        found += [Variant(steps, name, tuple(o.items())) for o in OPTIONS for name in ("merge", "interleave")]
        found += [Variant(steps, name, options) for name in ("merge", "interleave") for options in GUIDANCE]
        found += [Variant(steps, skip_high=2)]
    found += [Variant(steps) for steps in (24, 28, 32, 2, 17, 19)]
    for steps in (12, 4, 40):
        found += [
            Variant(steps, name, tuple(options.items())) for options in OPTIONS[:4] for name in ("merge", "interleave")
        ]
        found += [Variant(steps, skip_high=2)]
    return list(dict.fromkeys(found))


FIRST_STEP: list[dict[str, Any]] = [{"until": 1}, {"until": 1, "stride": 4}]
OPTIONS: list[dict[str, Any]] = [
    {"until": 2},
    {"full_end": 2},
    {"full_start": 1},
    {"until": 3},
    {"stride": 3},
    {"stride": 4},
    {"positions": "contiguous"},
    {"full_start": 1, "full_end": 3},
    {"until": "end", "full_end": 3},
    {"until": 1, "stride": 3},
    {"until": 5},
    {"full_end": 6},
]
TRUNCATED: tuple[tuple[str, Any], ...] = (("cfg_truncate_steps", 5), ("cfg_truncate_high_noise_steps", 3))
GUIDANCE: list[tuple[tuple[str, Any], ...]] = [(("cfg_every", 2),), (("cfg_every", 3),), TRUNCATED]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("action", choices=("run", "report"))
    parser.add_argument("--folder", type=Path, required=True)
    parser.add_argument("--clips", type=int, default=128)
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--part", default="1/1", help="K/N: one of N equal parts of the clips")
    parser.add_argument("--minutes", type=float, default=1e9)
    parser.add_argument("--steps", nargs="*", type=int, help="only variants with so many steps")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--workers", type=int, default=1, help="processes that measure, beside the one that makes")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    arguments.folder.mkdir(parents=True, exist_ok=True)
    {"run": run, "report": report}[arguments.action](arguments)


def held_out(count: int) -> list[tuple[Scene, int]]:
    """Scenes and seeds that no training saw."""
    rng = random.Random("held out")
    return [(random_scene(rng), 1_000_000 + number) for number in range(count)]


def run(arguments: argparse.Namespace) -> None:
    """Make and measure what is missing."""
    pipe = load_diffusers().to(arguments.device)
    part, parts = map(int, arguments.part.split("/"))
    cases = held_out(arguments.clips)[part - 1 :: parts]
    end = time.monotonic() + 60 * arguments.minutes
    with multiprocessing.get_context("spawn").Pool(arguments.workers, torch.set_num_threads, (1,)) as pool:
        written = []
        for variant in variants():
            path = arguments.folder / f"{variant.file}.{part}of{parts}.json"
            if path.exists() or (arguments.steps and variant.steps not in arguments.steps):
                continue
            if time.monotonic() > end:
                break
            started = time.monotonic()
            clips = make(pipe, variant, cases, arguments)
            print(f"{variant.name}: {time.monotonic() - started:.1f} s", flush=True)
            if variant == Variant(variant.steps):
                torch.save(clips, saved(arguments, variant.steps))
            against = {n: saved(arguments, n) for n in BASELINES if saved(arguments, n).exists()}
            tasks = [
                (clip, scene, number, variant.steps, against)
                for number, (clip, (scene, _)) in enumerate(zip(clips, cases, strict=True))
            ]
            measuring = pool.starmap_async(measured, tasks, callback=functools.partial(write, path, variant))
            written.append(measuring)
            if len(written) > 1:
                written[-2].get()  # at most one variant's clips wait while the next are made
        for measuring in written:
            measuring.get()


def write(path: Path, variant: Variant, rows: list[dict[str, Any]]) -> None:
    path.write_text(json.dumps({"variant": dataclasses.asdict(variant), "rows": rows}))


def saved(arguments: argparse.Namespace, steps: int) -> Path:
    """Where a baseline's clips are."""
    part: Path = arguments.folder / f"{Variant(steps).file}.{arguments.part.replace('/', 'of')}.pt"
    return part


@functools.cache
def saved_clips(path: Path) -> Tensor:
    """A baseline's clips, which every variant is measured against."""
    clips: Tensor = torch.load(path, mmap=True)
    return clips


def make(pipe: Any, variant: Variant, cases: list[tuple[Scene, int]], arguments: argparse.Namespace) -> Tensor:
    """The variant's clips as bytes, ``(N, 3, F, H, W)``."""
    parts = []
    for start in range(0, len(cases), arguments.batch):
        batch = cases[start : start + arguments.batch]
        with contextlib.ExitStack() as stack:
            if variant.strategy or variant.options:
                stack.enter_context(halfframe.enabled(pipe, variant.strategy, **dict(variant.options)))
            else:
                stack.enter_context(thinned(pipe, variant.skip_high))
            stack.enter_context(torch.autocast(arguments.device.split(":")[0], torch.bfloat16))
            video = generate(
                pipe, [str(scene) for scene, _ in batch], [seed for _, seed in batch], num_steps=variant.steps
            )
        parts.append((video.float() * 255).round().to(torch.uint8).cpu())
    return torch.cat(parts)


@contextlib.contextmanager
def thinned(pipe: Any, every: int) -> Iterator[None]:
    """Leave out all but every so-manyth high-noise step of the schedule, beginning with the first.

    Also says where the schedule begins: diffusers looks for the first timestep, and misses it where rounding gives two
    steps the same one, as it does in a schedule of 100 steps.
    """
    scheduler = pipe.scheduler
    original = scheduler.set_timesteps

    def set_timesteps(*args: Any, **kwargs: Any) -> None:
        original(*args, **kwargs)
        high = int((scheduler.timesteps >= 875).sum())
        kept = [*range(0, high, every), *range(high, len(scheduler.timesteps))]
        scheduler.sigmas = scheduler.sigmas[[*kept, -1]]
        scheduler.timesteps = scheduler.timesteps[kept]
        scheduler.num_inference_steps = len(kept)
        scheduler.set_begin_index(0)

    scheduler.set_timesteps = set_timesteps
    try:
        yield
    finally:
        del scheduler.set_timesteps


def measured(clip: Tensor, scene: Scene, number: int, steps: int, against: dict[int, Path]) -> dict[str, Any]:
    """Of one clip alone, and its distances from the plain clips of the same number."""
    video = clip.float() / 255
    seen = measure(video, scene)
    moving = [sighting for sighting in seen if sighting.thing.direction is not None and sighting.found]
    array = video.permute(1, 2, 3, 0).numpy()
    row = {
        "found": float(np.mean([s.found for s in seen])),
        "shape": float(np.mean([s.shape == s.thing.shape for s in seen])),
        "direction": float(np.mean([s.direction_right for s in seen])),
        "right": float(np.mean([s.right for s in seen])),
        "speed": float(np.mean([s.speed for s in moving])) if moving else None,
        "speed_error": float(np.mean([s.speed_error for s in moving])) if moving else None,
        "speeds": [s.speed if s.found else None for s in seen],
        "duplication": metrics.video_duplication_ratio(array),
        "features": features(video),
    }
    for others, path in against.items():
        plain = saved_clips(path)[number].permute(1, 2, 3, 0).float().div(255).numpy()
        row[f"psnr_{others}"] = min(metrics.psnr(metrics.mse(array, plain)), 99.0)
        if others == steps:
            row["ssim"] = metrics.mean(metrics.ssim_per_frame(array[::10], plain[::10]))
    return row


def features(video: Tensor) -> list[float]:
    """What the Frechet distance is of: change over 1, 4 and 16 frames, mean and deviation of each colour, edges."""
    changes = [float((video[:, lag:] - video[:, :-lag]).abs().mean()) for lag in (1, 4, 16)]
    colours = [float(value) for value in (*video.mean(dim=(1, 2, 3)), *video.std(dim=(1, 2, 3)))]
    edges = [float(video.diff(dim=dim).abs().mean()) for dim in (-1, -2)]
    return [*changes, *colours, *edges]


# The report.


def report(arguments: argparse.Namespace) -> None:
    """Tables and the plot, from what `run` left."""
    by_name: dict[str, tuple[Variant, list[dict[str, Any]]]] = {}
    for path in sorted(arguments.folder.glob("*of*.json")):
        item = json.loads(path.read_text())
        item["variant"]["options"] = tuple((key, value) for key, value in item["variant"]["options"])
        variant = Variant(**item["variant"])
        by_name.setdefault(variant.name, (variant, []))[1].extend(item["rows"])
    most = max(len(rows) for _, rows in by_name.values())
    by_name = {name: found for name, found in by_name.items() if len(found[1]) == most}  # whole ones
    real = np.array(real_features(arguments.clips))
    distinct = {}  # options that make no difference at so many steps make the very same clips
    for name in sorted(by_name, key=len):
        distinct.setdefault(json.dumps([row["features"] for row in by_name[name][1]]), by_name[name])
    rows = [
        summary(variant, results, by_name[Variant(variant.steps).name][1], real)
        for variant, results in distinct.values()
        if Variant(variant.steps).name in by_name
    ]
    rows.sort(key=lambda row: (row["steps"], row["cost"]))
    (arguments.folder / "study.json").write_text(json.dumps(rows, indent=2) + "\n")
    (arguments.folder / "study.md").write_text(markdown(rows))
    plot(rows, arguments.folder / "pareto.png")
    print(markdown(rows))


def real_features(count: int) -> list[list[float]]:
    """Of clips as they were drawn, as many as were made, of other scenes."""
    rng = random.Random("real")
    drawn = []
    for _ in range(count):
        scene = random_scene(rng)
        clip = render(scene, [(rng.random(), rng.random()) for _ in scene.things], 81, SIDE, rng.getrandbits(31))
        drawn.append(features((clip + 1) / 2))
    return drawn


def summary(variant: Variant, rows: list[dict[str, Any]], plain: list[dict[str, Any]], real: Any) -> dict[str, Any]:
    """One line of the table; every figure is a mean over the clips with the half-width of its 95 % interval."""
    cost, tokens = costs(variant)
    result: dict[str, Any] = {"name": variant.name, "steps": variant.steps, "cost": cost, "tokens": tokens}
    result["clips"] = len(rows)
    for key in ("right", "found", "shape", "direction", "speed_error", "duplication"):
        known = [row[key] for row in rows if row[key] is not None]
        result[key] = interval(known) if known else None
    for key in sorted(key for key in rows[0] if key.startswith(("psnr_", "ssim"))):
        result[key] = interval([row[key] for row in rows])
    ratios = [
        ours / theirs
        for row, other in zip(rows, plain, strict=True)
        for ours, theirs in zip(row["speeds"], other["speeds"], strict=True)
        if ours is not None and theirs is not None and theirs > 0.15
    ]
    result["motion"] = interval(ratios) if ratios else None
    result["frechet"] = frechet(np.array([row["features"] for row in rows]), real)
    return result


def costs(variant: Variant) -> tuple[float, float]:
    """In full steps: time at the true shapes, and tokens."""
    options = {key: value for key, value in variant.options if key != "noise"}
    plan = halfframe.plan(sampling_steps=variant.steps, strategy=variant.strategy, rates=H200, **options)
    if variant.skip_high > 1:
        made = plan.report.low.steps + -(-plan.report.high.steps // variant.skip_high)
        return float(made), float(made)
    linear, linear_run = plan.linear_tflops
    return variant.steps / plan.predicted_speedup, variant.steps * linear_run / linear


def interval(values: list[float]) -> tuple[float, float]:
    """Mean, and half the width of a bootstrapped 95 % interval."""
    data = np.array(values, dtype=float)
    drawn = np.random.default_rng(0).choice(data, (1000, len(data))).mean(axis=1)
    low, high = np.percentile(drawn, [2.5, 97.5])
    return float(data.mean()), float(high - low) / 2


def frechet(ours: Any, real: Any) -> float:
    """Frechet distance of two sets of `features`, each feature in units of the real clips' deviation."""
    scale = real.std(axis=0) + 1e-6
    ours, real = ours / scale, real / scale
    a, b = np.cov(ours, rowvar=False), np.cov(real, rowvar=False)
    eigenvalues = np.linalg.eigvals(a @ b)
    root = np.sqrt(np.clip(eigenvalues.real, 0, None)).sum()
    return float(((ours.mean(0) - real.mean(0)) ** 2).sum() + np.trace(a) + np.trace(b) - 2 * root)


COLUMNS = {
    "cost": "time of the experts at A14B, 81 frames 1280x720, on an H200 (predicted), in full steps",
    "tokens": "tokens through the experts, in full steps",
    "PSNR": "dB to the plain clip of the same seed and as many steps",
    "PSNR 8": "dB to the plain clip of 8 steps",
    "PSNR 20": "dB to the plain clip of 20 steps",
    "PSNR 40": "dB to the plain clip of 40 steps",
    "PSNR 100": "dB to the plain clip of 100 steps",
    "SSIM": "to the plain clip of as many steps",
    "duplication": "change within pairs of latent frames over change between them; 1 = no judder",
    "motion": "speed of moving things over the plain clip's",
    "speed error": "distance of the velocity of moving things from the prompt's, pixels per video frame at 64x64",
    "right": "share of things whose colour, shape, size and direction are the prompt's",
    "Frechet": "distance to real clips, of the features named in `features`",
}


def markdown(rows: list[dict[str, Any]]) -> str:
    """The table."""
    lines = ["| variant | " + " | ".join(COLUMNS) + " |", "| --- |" + " ---: |" * len(COLUMNS)]
    for row in rows:
        cells = [f"{row['cost']:.1f}", f"{row['tokens']:.1f}"]
        for steps in (row["steps"], 8, 20, 40, REFERENCE_STEPS):
            cells.append("" if row["name"] == Variant(steps).name else shown(row.get(f"psnr_{steps}"), 1))
        cells.append("" if row["name"] == Variant(row["steps"]).name else shown(row.get("ssim"), 3))
        cells += [shown(row[key], 2) for key in ("duplication", "motion", "speed_error", "right")]
        lines.append(f"| {row['name']} | " + " | ".join([*cells, f"{row['frechet']:.2f}"]) + " |")
    lines += ["", *(f"- {name}: {meaning}" for name, meaning in COLUMNS.items())]
    lines += [f"- {rows[0]['clips']} clips each; +- is half of a bootstrapped 95 % interval"]
    return "\n".join(lines) + "\n"


def shown(value: tuple[float, float] | None, digits: int) -> str:
    return "" if value is None else f"{value[0]:.{digits}f} +-{value[1]:.{digits}f}"


GROUPS = {
    "fewer steps": lambda row: row["name"].endswith(", plain"),
    "the same, merge at the first step": lambda row: row["name"].endswith("merge until=1 stride=4"),
    "guidance left out or reused": lambda row: "all frames" in row["name"],
    "skipped high-noise steps": lambda row: "1 in" in row["name"],
    "self-duplicate": lambda row: "self-duplicate" in row["name"],
    "own-noise, interpolate": lambda row: "own-noise" in row["name"] or "interpolate" in row["name"],
    "interleave": lambda row: "interleave" in row["name"],
    "merge": lambda row: "merge" in row["name"],
}


LINES = {"fewer steps": "-", "the same, merge at the first step": ":"}  # over numbers of steps


def plot(rows: list[dict[str, Any]], path: Path) -> None:
    """PSNR to the plain clips of 8 and of 20 steps over cost."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(13, 6), dpi=110, layout="constrained")
    for axes, steps in zip(figure.subplots(1, 2), (8, 20), strict=True):
        for (label, belongs), marker in zip(GROUPS.items(), "oDp^sXvd", strict=True):
            line = LINES.get(label, "")
            points = [
                row
                for row in rows
                if belongs(row)
                and f"psnr_{steps}" in row
                and row["name"] != Variant(steps).name
                and (row["steps"] <= steps if line else row["steps"] == steps)
            ]
            if not points:
                continue
            points.sort(key=lambda row: row["cost"])
            axes.errorbar(
                [row["cost"] for row in points],
                [row[f"psnr_{steps}"][0] for row in points],
                [row[f"psnr_{steps}"][1] for row in points],
                fmt=marker + line,
                label=label,
                markersize=5,
            )
        axes.set_title(f"{steps} steps")
        axes.set_xlabel("cost in full steps (experts of A14B, 81 frames 1280x720, H200, predicted)")
        axes.set_ylabel(f"PSNR to the plain clip of {steps} steps, dB")
        axes.grid(alpha=0.3)
    axes.legend(frameon=False)
    figure.savefig(path)


if __name__ == "__main__":
    main()
