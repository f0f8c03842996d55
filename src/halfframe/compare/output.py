"""A comparison on disk: ``comparison.json``, ``comparison.md``, and the pictures and clips of each case."""

from __future__ import annotations

import json
import logging
import math
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from halfframe.compare import pictures
from halfframe.compare.extras import require
from halfframe.compare.results import Comparison, Results
from halfframe.compare.videos import FPS, write_video

__all__ = ["Writer", "markdown"]

_logger = logging.getLogger(__name__)

_COLUMNS = {
    "MSE": "mean squared error against the baseline's clip, values in 0..1",
    "PSNR dB": "-10 log10(MSE) per frame, peak 1 (MSE 0.01 is 20 dB), mean over frames that differ from the baseline's",
    "SSIM": "windowed, Gaussian sigma 1.5 (11 pixels), data range 1, mean of channels and frames (scikit-image)",
    "LPIPS": "AlexNet, mean over frames; 0 = the same",
    "duplication": "change within pairs of latent frames over change between pairs, seen in the last video frame of "
    "each; 1 = no judder, 0 = every latent frame shown twice",
    "motion": "mean difference of adjacent frames over the baseline's; 1 = as much motion",
}


def markdown(comparison: Comparison) -> str:
    """The comparison as a heading of facts, one table, and what its columns mean."""
    lines = ["# halfframe compare", ""]
    lines += [f"- {key.replace('_', ' ')}: {_fact(value)}" for key, value in comparison.facts.items()]
    absent = comparison.absent
    columns = [name for name in _COLUMNS if name.lower() not in absent]
    header = ["variant", "steps", "clips", "seconds", "speed-up", "predicted", *columns]
    lines += ["", _line(header), _line(["---"] + ["---:"] * (len(header) - 1))]
    lines += [_line(_row(comparison, results, columns)) for results in comparison.rows]
    lines += [
        "",
        "Seconds are wall time of the whole call, device synchronised, median over the clips; speed-up is the",
    ]
    lines += ["ratio of medians over the same clips; predicted is for the experts' arithmetic alone.", ""]
    lines += [f"- {name}: {_COLUMNS[name]}" for name in columns]
    lines += [f"- {name.upper()} is absent: {reason}" for name, reason in absent.items()]
    for results in comparison.rows:
        lines += [f"- {results.variant.name}: {note}" for note in results.notes]
    lines += [f"- {note}" for note in comparison.notes]
    return "\n".join(lines) + "\n"


class Writer:
    """Writes what is finished as it comes, so that a crash later loses nothing.

    A picture that cannot be made is a note in the comparison, not the end of it.

    Args:
        folder: is made if need be; None to write nothing.
        fps: of the clips.
    """

    def __init__(self, folder: str | Path | None, fps: float = FPS) -> None:
        self.folder = None if folder is None else Path(folder)
        self._fps = fps
        if self.folder is not None:
            for package in ("imageio.v2", "imageio_ffmpeg", "matplotlib", "PIL"):
                require(package, "write clips and pictures")
            self.folder.mkdir(parents=True, exist_ok=True)

    def tables(self, comparison: Comparison) -> None:
        """``comparison.json`` and ``comparison.md``; each is replaced as a whole."""
        if self.folder is not None:
            data = json.dumps(comparison.to_dict(), indent=2, allow_nan=False, ensure_ascii=False)
            _replace(self.folder / "comparison.json", data + "\n")
            _replace(self.folder / "comparison.md", markdown(comparison))

    def clip(self, comparison: Comparison, video: npt.NDArray[np.uint8], case: str, name: str) -> None:
        """One variant's clip at full size, ``<case>/<name>.mp4``."""
        if self.folder is not None:
            path = self.folder / case / f"{_slug(name)}.mp4"
            self._try(comparison, path, lambda: write_video(path, video, self._fps))

    def pictures(
        self, comparison: Comparison, videos: Mapping[str, npt.NDArray[np.uint8]], case: str, title: str
    ) -> None:
        """One case's ``<case>.png``, a strip of frames, and ``<case>.mp4``, all variants beside each other."""
        if self.folder is None or not videos:
            return
        strip, side_by_side = self.folder / f"{case}.png", self.folder / f"{case}.mp4"
        caption = f"{title} (random weights)" if pictures.random_weights(comparison) else title
        self._try(comparison, strip, lambda: pictures.strip(videos, caption).save(strip))
        self._try(comparison, side_by_side, lambda: write_video(side_by_side, pictures.beside(videos), self._fps))

    def finish(self, comparison: Comparison) -> None:
        """``per-frame.png``, and the tables once more, with all notes."""
        if self.folder is not None:
            path = self.folder / "per-frame.png"
            self._try(comparison, path, lambda: pictures.plot(comparison, path))
            self.tables(comparison)

    def _try(self, comparison: Comparison, path: Path, write: Callable[[], object]) -> None:
        try:
            write()
        except Exception as error:
            _logger.debug("%s was not written", path, exc_info=True)
            comparison.notes.append(f"{path.name} was not written: {type(error).__name__}: {error}")


def _row(comparison: Comparison, results: Results, columns: list[str]) -> list[str]:
    identical = sum(trial.quality.identical_frames for trial in results.trials if trial.quality)
    psnr = results.mean(lambda q: q.psnr)
    cells = {
        "MSE": _number(results.mean(lambda q: q.mse), ".2e"),
        "PSNR dB": _number(psnr, ".1f")
        + (f" ({identical} identical)" if identical and math.isfinite(psnr or 0) else ""),
        "SSIM": _number(results.mean(lambda q: q.ssim), ".3f"),
        "LPIPS": _number(results.mean(lambda q: q.lpips), ".3f"),
        "duplication": _number(results.duplication_ratio, ".2f"),
        "motion": _number(results.mean(lambda q: q.motion_ratio), ".2f"),
    }
    return [
        results.variant.name + (" (failed)" if results.error else ""),
        "" if results.steps is None else str(results.steps),
        str(len(results.trials)),
        _number(results.seconds, ".2f"),
        _number(comparison.speedup(results), ".2f", "x"),
        _number(comparison.predicted_speedup(results), ".2f", "x"),
        *(cells[name] for name in columns),
    ]


def _number(value: float | None, form: str, unit: str = "") -> str:
    if value is None:
        return ""
    return f"{value:{form}}{unit}" if math.isfinite(value) else "identical"


def _line(cells: list[str]) -> str:
    return "| " + " | ".join(cell.replace("|", "\\|").replace("\n", " ") for cell in cells) + " |"


def _fact(value: Any) -> str:
    return "; ".join(map(str, value)) if isinstance(value, list) else str(value)


def _slug(name: str) -> str:
    return re.sub(r"[^\w.+-]+", "-", name).strip("-.") or "variant"


def _replace(path: Path, text: str) -> None:
    """Write beside and rename, so that a crash leaves the old file or the new one."""
    part = path.with_name(path.name + ".part")
    part.write_text(text, encoding="utf-8")
    part.replace(path)
