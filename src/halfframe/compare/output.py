"""A comparison on disk: JSON, Markdown, ``report.html``, and the pictures and clips of each case."""

from __future__ import annotations

import contextlib
import json
import logging
import os
import re
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from halfframe.compare import pictures
from halfframe.compare.extras import require
from halfframe.compare.report_page import clip_sheets, read_sheets
from halfframe.compare.results import Comparison, describe
from halfframe.compare.summary import html_page, markdown, to_dict
from halfframe.compare.unfinished import Unfinished
from halfframe.compare.videos import FPS, write_video

__all__ = ["Writer"]

_logger = logging.getLogger(__name__)


class Writer:
    """Writes what is finished as it comes, so that a crash later loses nothing.

    A picture that cannot be made is a note in the comparison, not the end of it.

    Args:
        folder: is made if need be; None to write nothing.
        fps: of the clips.
        earlier: what a comparison that is gone on from wrote, whose files are this one's then.

    Attributes:
        folder: that folder.
        unfinished: keeps the clips of the case that is in work; None if `keep_clips` was not called.
    """

    def __init__(self, folder: str | Path | None, fps: float = FPS, earlier: Mapping[str, Any] | None = None) -> None:
        self.folder = None if folder is None else Path(folder)
        self.unfinished: Unfinished | None = None
        self._fps = fps
        self._paths: dict[tuple[str, str], Path] = {}
        self._cases: list[dict[str, Any]] = []
        if self.folder is None:
            return
        for package in ("imageio.v2", "imageio_ffmpeg", "matplotlib", "PIL"):
            require(package, "write clips and pictures")
        self.folder.mkdir(parents=True, exist_ok=True)
        if earlier is not None:
            paths = {(name, owner): self.folder / path for name, owner, path in earlier["files"]}
            links = {path for path in paths.values() if path.is_symlink() or path.parent.is_symlink()}
            self._paths = {key: path for key, path in paths.items() if path.is_file() and path not in links}
            if ("report.html", "") in self._paths:
                self._cases = read_sheets(self._paths["report.html", ""])

    def keep_clips(self, earlier: Mapping[str, Any] | None = None) -> None:
        """From now on `unfinished` is there, if there is a folder; also with what is left of an earlier comparison.

        Raises:
            OptionError: another process goes on from the same.
        """
        if self.folder is not None:
            self.unfinished = Unfinished(self.folder, None if earlier is None else earlier["unfinished"])

    def shows(self, case: str) -> bool:
        """Whether the pictures of a case were made."""
        return any(one["key"] == case for one in self._cases)

    def tables(self, comparison: Comparison) -> None:
        """``comparison.json`` and ``comparison.md``; each is replaced as a whole."""
        if self.folder is not None:
            self._write(comparison, "comparison.md", lambda path: _write_text(path, markdown(comparison)))
            self._write(comparison, "comparison.json", lambda path: _write_text(path, self._json(comparison)))

    def _json(self, comparison: Comparison) -> str:
        """The comparison, and what a later call has to know to go on."""
        assert self.folder is not None
        files = [[*key, str(path.relative_to(self.folder))] for key, path in self._paths.items()]
        data = {**to_dict(comparison), "files": files, "unfinished": self.unfinished and self.unfinished.path.name}
        return json.dumps(data, indent=2, allow_nan=False, ensure_ascii=False) + "\n"

    def clip(self, comparison: Comparison, video: npt.NDArray[np.uint8], case: str, name: str) -> None:
        """One variant's clip at full size, ``<case>/<name>.mp4``, if it is not there already."""
        if self.folder is not None and (f"{case}/{_slug(name)}.mp4", name) not in self._paths:
            self._write(comparison, f"{case}/{_slug(name)}.mp4", lambda path: self._video(path, video), name)

    def pictures(
        self, comparison: Comparison, videos: Mapping[str, npt.NDArray[np.uint8]], case: str, title: str
    ) -> None:
        """One case's ``<case>.png``, a strip of frames, and ``<case>.mp4``, all variants beside each other.

        And ``report.html``, with the clips of this case and those before it.
        """
        if self.folder is None or not videos:
            return
        caption = f"{title} (random weights)" if pictures.random_weights(comparison) else title
        self._write(comparison, f"{case}.png", lambda path: pictures.strip(videos, caption).save(path))
        self._write(comparison, f"{case}.mp4", lambda path: self._video(path, pictures.beside(videos)))
        self._report(comparison, lambda: clip_sheets(case, caption or "the files", videos, self._fps))

    def finish(self, comparison: Comparison) -> None:
        """``per-frame.png``, and the tables once more, with all notes."""
        if self.folder is not None:
            if any(trial.quality for results in comparison.variants for trial in results.trials):
                self._write(comparison, "per-frame.png", lambda path: pictures.plot(comparison, path))
            self._report(comparison)
            self.tables(comparison)
        if self.unfinished is not None:
            self.unfinished.close()

    def _report(self, comparison: Comparison, case: Callable[[], dict[str, Any]] | None = None) -> None:
        def write(path: Path) -> None:
            added = [case()] if case else []
            self._cases = [one for one in self._cases if one["key"] not in [new["key"] for new in added]] + added
            _write_text(path, html_page(comparison, self._cases))

        self._write(comparison, "report.html", write)

    def _video(self, path: Path, video: npt.NDArray[np.uint8]) -> None:
        """Write a clip and look whether it is whole: under a full disk ffmpeg cuts it short without a word."""
        write_video(path, video, self._fps)
        found = 0
        with (
            contextlib.suppress(Exception),  # ffmpeg's words for it go on for pages
            require("imageio.v2", "check clips").get_reader(path, format="FFMPEG") as reader,
        ):
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
            note = f"{Path(name).name} was not written: {describe(error)}"
            comparison.notes += [note] if note not in comparison.notes else []
            comparison.lost += [note] if note not in comparison.lost else []
        finally:  # also when it is interrupted
            if part is not None:
                part.unlink(missing_ok=True)
            held = self._paths.get((name, owner))
            if held is not None and held.exists() and not held.stat().st_size:
                self._paths.pop((name, owner)).unlink()  # it only held the place

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


def _write_text(path: Path, text: str) -> None:
    path.write_text(text, encoding="utf-8")


def _slug(name: str) -> str:
    return re.sub(r"[^\w.+-]+", "-", name)[:80].strip("-.") or "variant"
