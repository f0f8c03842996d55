"""Pictures of a comparison: a strip of frames, all variants beside each other, and metrics frame by frame."""

from __future__ import annotations

import math
import re
import textwrap
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from halfframe.compare.extras import require
from halfframe.compare.quality import Quality
from halfframe.compare.results import Comparison, Results

__all__ = ["beside", "plot", "random_weights", "strip"]

Clip = npt.NDArray[np.uint8]

_GAP = 6
_TEXT = 16
_INK = (25, 25, 25)
_PAPER = (255, 255, 255)
_AMPLIFIED = 3


def strip(clips: Mapping[str, Clip], caption: str = "", columns: int = 6, tile_width: int = 240) -> Any:
    """A PIL picture: a row per clip ``(F, H, W, 3)``, labelled, with up to `columns` frames spread over its length.

    Below each clip but the first stands its difference from the first, so that black is no difference. Frames are
    numbered from 0; small ones are enlarged without smoothing.
    """
    shortest = min(len(clip) for clip in clips.values())
    columns = min(columns, shortest)
    # Middles of equal parts: from first to last in whole latent pairs would show kept latent frames only.
    numbers = [int((i + 0.5) * shortest / columns) for i in range(columns)]
    first, *others = clips
    rows = {first: clips[first][numbers]}
    for name in others:
        rows[name] = clips[name][numbers]
        if rows[name].shape == rows[first].shape:
            rows[f"its difference from {first}, {_AMPLIFIED}x"] = _difference(rows[name], rows[first])
    labels = [
        f"{name}, frame {number}" if number == numbers[0] else f"frame {number}" for name in rows for number in numbers
    ]
    tiles = [frame for row in rows.values() for frame in row]
    return _sheet(list(zip(labels, tiles, strict=True)), columns, tile_width, caption)


def beside(clips: Mapping[str, Clip], columns: int = 3, widest: int = 1920) -> Clip:
    """All clips at once, labelled, up to `columns` in a row: one clip ``(F, H', W', 3)``, as long as the shortest.

    Panels are shrunk so that a row is at most `widest` pixels; small ones are enlarged without smoothing.
    """
    columns = min(columns, len(clips))
    width = min((widest - _GAP * (columns - 1)) // columns, max(320, *(clip.shape[2] for clip in clips.values())))
    frames = zip(*clips.values(), strict=False)
    return np.stack([np.asarray(_sheet(list(zip(clips, tiles, strict=True)), columns, width)) for tiles in frames])


def _sheet(tiles: Sequence[tuple[str, Clip]], columns: int, width: int, caption: str = "") -> Any:
    """A PIL picture of frames ``(H, W, 3)`` in rows, each of that width and with its label above it."""
    image, draw_module = require("PIL.Image", "draw pictures"), require("PIL.ImageDraw", "draw pictures")
    pictures = [_resized(frame, width) for _, frame in tiles]
    labels = [_wrapped(label, max(12, width // 9)) for label, _ in tiles]
    whole_width = columns * (width + _GAP) - _GAP
    lines = _wrapped(caption, max(24, whole_width // 9)) if caption else []
    top, label_height = (_TEXT + 6) * len(lines), (_TEXT + 6) * max(map(len, labels)) + _GAP
    row_height = max(picture.height for picture in pictures) + label_height
    canvas = image.new("RGB", (whole_width, top + math.ceil(len(tiles) / columns) * row_height), _PAPER)
    draw, font = draw_module.Draw(canvas), require("PIL.ImageFont", "draw pictures").load_default(_TEXT)
    draw.multiline_text((4, 2), "\n".join(lines), fill=_INK, font=font)
    for index, (label, picture) in enumerate(zip(labels, pictures, strict=True)):
        x, y = index % columns * (width + _GAP), top + index // columns * row_height
        draw.multiline_text((x + 4, y + 2), "\n".join(label), fill=_INK, font=font)
        canvas.paste(picture, (x, y + label_height))
    return canvas


def plot(comparison: Comparison, path: str | Path) -> None:
    """PSNR and SSIM of every variant over the video frames, mean over its clips, as a PNG.

    Frames that equal the baseline's have no finite PSNR: they are left open.
    """
    figures = require("matplotlib.figure", "draw the plot")
    require("matplotlib.backends.backend_agg", "draw the plot")
    rows = [results for results in comparison.variants if any(trial.quality for trial in results.trials)]
    if not rows:
        return
    figure = figures.Figure(figsize=(10, 6.5), dpi=120, layout="constrained")
    upper, lower = figure.subplots(2, 1, sharex=True)
    for i, results in enumerate(rows):
        style = {"label": _label(results), "marker": "osD^v*PX"[i % 8], "markersize": 4, "linewidth": 1.4}
        style["linestyle"] = ("-", "--", ":", "-.")[i % 4]  # lines that coincide stay visible
        psnr = _over_frames(results, lambda quality: quality.psnr_frames)
        upper.plot(range(len(psnr)), psnr, **style)
        ssim = _over_frames(results, lambda quality: quality.ssim_frames or ())
        lower.plot(range(len(ssim)), ssim, **style)
    upper.set_ylabel("PSNR to the baseline, dB (peak 1)")
    lower.set_ylabel("SSIM to the baseline")
    lower.set_xlabel("video frame")
    clips = max(len(results.trials) for results in rows)
    facts = comparison.facts
    about = [str(facts[key]) for key in ("pipeline", "video") if key in facts]
    about += [f"baseline {comparison.baseline.steps} steps"] if comparison.baseline.steps else []
    about += [f"mean of {clips} clips" if clips > 1 else "1 clip"]
    about += ["random weights"] if random_weights(comparison) else []
    figure.suptitle(", ".join(about), fontsize=11)
    for axes in (upper, lower):
        axes.grid(alpha=0.3)
    figure.legend(*upper.get_legend_handles_labels(), loc="outside lower center", ncols=3, fontsize=9, frameon=False)
    figure.savefig(path)


def random_weights(comparison: Comparison) -> bool:
    """Whether the clips are noise, which every picture of them must say."""
    return str(comparison.facts.get("weights", "")).startswith("random")


def _label(results: Results) -> str:
    steps = "" if results.steps is None or str(results.steps) in results.variant.name else f", {results.steps} steps"
    return results.variant.name + steps


def _over_frames(results: Results, get: Any) -> list[float]:
    """Mean over the clips, frame by frame; NaN where no clip has a finite value."""
    qualities: list[Quality] = [trial.quality for trial in results.trials if trial.quality]
    frames: Sequence[Sequence[float]] = [get(quality) for quality in qualities]
    means = []
    for values in zip(*frames, strict=False):
        finite = [value for value in values if math.isfinite(value)]
        means.append(sum(finite) / len(finite) if finite else math.nan)
    return means


def _difference(clip: Clip, other: Clip) -> Clip:
    distance = np.abs(clip.astype(np.int16) - other.astype(np.int16))
    shown: Clip = np.minimum(_AMPLIFIED * distance, 255).astype(np.uint8)
    return shown


def _resized(frame: Clip, width: int) -> Any:
    image = require("PIL.Image", "draw pictures")
    picture = image.fromarray(np.ascontiguousarray(frame))
    height = max(1, round(picture.height * width / picture.width))
    method = image.Resampling.NEAREST if width > picture.width else image.Resampling.LANCZOS
    return picture.resize((width, height), method)


def _wrapped(text: str, width: int) -> list[str]:
    """Lines of up to `width` characters; a strategy that is longer is broken between its options, not in a number."""
    words = (re.sub(r"([,:])(?=\S)", r"\1 ", word) if len(word) > width else word for word in text.split())
    return textwrap.wrap(" ".join(words), width) or [""]
