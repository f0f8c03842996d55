"""A comparison on disk: ``comparison.json``, ``comparison.md``, and the pictures and clips of each case."""

from __future__ import annotations

import json
import logging
import math
import os
import re
import tempfile
from collections.abc import Callable, Mapping
from functools import partial
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
        lines += [_escaped(f"- {results.variant.name}: {note}") for note in results.notes]
    lines += [_escaped(f"- {note}") for note in comparison.notes]
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
        self._paths: dict[tuple[str, str], Path] = {}
        if self.folder is not None:
            for package in ("imageio.v2", "imageio_ffmpeg", "matplotlib", "PIL"):
                require(package, "write clips and pictures")
            self.folder.mkdir(parents=True, exist_ok=True)

    def tables(self, comparison: Comparison) -> None:
        """``comparison.json`` and ``comparison.md``; each is replaced as a whole."""
        if self.folder is not None:
            data = json.dumps(comparison.to_dict(), indent=2, allow_nan=False, ensure_ascii=False)
            for name, text in (("comparison.json", data + "\n"), ("comparison.md", markdown(comparison))):
                self._write(comparison, name, partial(_write_text, text=text))

    def clip(self, comparison: Comparison, video: npt.NDArray[np.uint8], case: str, name: str) -> None:
        """One variant's clip at full size, ``<case>/<name>.mp4``."""
        if self.folder is not None:
            self._write(comparison, f"{case}/{_slug(name)}.mp4", lambda path: self._video(path, video), name)

    def pictures(
        self, comparison: Comparison, videos: Mapping[str, npt.NDArray[np.uint8]], case: str, title: str
    ) -> None:
        """One case's ``<case>.png``, a strip of frames, and ``<case>.mp4``, all variants beside each other."""
        if self.folder is None or not videos:
            return
        caption = f"{title} (random weights)" if pictures.random_weights(comparison) else title
        self._write(comparison, f"{case}.png", lambda path: pictures.strip(videos, caption).save(path))
        self._write(comparison, f"{case}.mp4", lambda path: self._video(path, pictures.beside(videos)))

    def finish(self, comparison: Comparison) -> None:
        """``per-frame.png``, and the tables once more, with all notes."""
        if self.folder is not None:
            if any(trial.quality for results in comparison.variants for trial in results.trials):
                self._write(comparison, "per-frame.png", lambda path: pictures.plot(comparison, path))
            self.tables(comparison)

    def _video(self, path: Path, video: npt.NDArray[np.uint8]) -> None:
        """Write a clip and look whether it is whole: under a full disk ffmpeg cuts it short without a word."""
        write_video(path, video, self._fps)
        with require("imageio.v2", "check clips").get_reader(path, format="FFMPEG") as reader:
            found = reader.count_frames()
        if found != len(video):
            raise OSError(f"{found} of {len(video)} frames are in it; is the disk full?")

    def _write(self, comparison: Comparison, name: str, write: Callable[[Path], object], owner: str = "") -> None:
        """Write to a temporary file of this process and rename it, so that a file is whole or not there.

        Never over a file of anyone else, nor through a link: a name that is taken gets a number.
        """
        part = None
        try:
            path = self._path(name, owner)
            handle, temporary = tempfile.mkstemp(prefix=".part-", suffix=path.suffix, dir=path.parent)
            os.close(handle)
            part = Path(temporary)
            write(part)
            part.chmod(0o644)
            os.replace(part, path)
        except Exception as error:
            _logger.debug("%s was not written", name, exc_info=True)
            if part is not None:
                part.unlink(missing_ok=True)
            held = self._paths.get((name, owner))
            if held is not None and held.exists() and not held.stat().st_size:
                self._paths.pop((name, owner)).unlink()  # it only held the place
            note = f"{Path(name).name} was not written: {type(error).__name__}: {error}"
            comparison.notes += [note] if note not in comparison.notes else []
            comparison.lost += [note] if note not in comparison.lost else []

    def _path(self, name: str, owner: str) -> Path:
        """Where this writer's file `name` of `owner` is; the place is taken when it is first asked for."""
        if (name, owner) not in self._paths:
            assert self.folder is not None
            path = self.folder / name
            if path.parent.is_symlink():
                raise OSError(f"the folder {path.parent} is a link")
            path.parent.mkdir(exist_ok=True)
            number, stem = 1, path.stem
            while True:
                try:  # an empty file holds the place, against other processes too
                    os.close(os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o644))
                    break
                except FileExistsError:
                    number += 1
                    path = path.with_name(f"{stem}-{number}{path.suffix}")
            self._paths[name, owner] = path
        return self._paths[name, owner]


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
        _escaped(results.variant.name) + (" (failed)" if results.error else ""),
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
    return "| " + " | ".join(cell.replace("\\|", "|").replace("|", "\\|").replace("\n", " ") for cell in cells) + " |"


def _fact(value: Any) -> str:
    return _escaped("; ".join(map(str, value)) if isinstance(value, list) else str(value))


def _escaped(text: str) -> str:
    """`text` without a meaning in Markdown or HTML, on one line; an underscore within a word has none."""
    return re.sub(r"([\\`*\[\]<>&]|(?<!\w)_|_(?!\w))", r"\\\1", " ".join(text.split()))


def _write_text(path: Path, text: str) -> None:
    path.write_text(text, encoding="utf-8")


def _slug(name: str) -> str:
    return re.sub(r"[^\w.+-]+", "-", name)[:80].strip("-.") or "variant"
