"""What a comparison leaves while it is not finished, and going on from it."""

from __future__ import annotations

import hashlib
import importlib
import json
import math
import shutil
import tempfile
from dataclasses import fields
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from halfframe.compare.quality import Quality
from halfframe.compare.results import Comparison, Results, Trial, Variant, describe
from halfframe.compare.runs import Passes, Run
from halfframe.compare.summary import plain
from halfframe.errors import OptionError

__all__ = ["Unfinished", "earlier", "restore"]

_MAY_DIFFER = ("date", "command")


class Unfinished:
    """The clips of cases that are not whole, as they were made, in a hidden folder that is locked while it is used.

    Args:
        folder: of the comparison.
        name: of the hidden folder in it; None for a new one.

    Raises:
        OptionError: another process uses it.
    """

    def __init__(self, folder: Path, name: str | None) -> None:
        self.path = Path(tempfile.mkdtemp(prefix=".unfinished-", dir=folder)) if name is None else folder / name
        if self.path.is_symlink():
            raise OptionError(f"{self.path} is a link; leave out resume, or name another folder.")
        self.path.mkdir(exist_ok=True)
        self._lock = (self.path / "lock").open("w")
        try:
            fcntl = importlib.import_module("fcntl")
        except ImportError:  # on Windows; there nothing keeps two from going on with the same
            return
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            raise OptionError(
                f"another comparison goes on in {folder}; wait for it, or name another folder."
            ) from error

    def keep(self, case: str, name: str, clip: npt.NDArray[Any]) -> None:
        """A clip, for a later call; one that there is no room for has to be made again."""
        path = self._place(case, name)
        part = path.with_suffix(".part")
        try:
            path.parent.mkdir(exist_ok=True)
            with part.open("wb") as file:
                np.save(file, clip)
            part.replace(path)
        except OSError:
            part.unlink(missing_ok=True)

    def kept(self, case: str, name: str) -> npt.NDArray[Any] | None:
        """That clip, if it is there."""
        try:
            clip: npt.NDArray[Any] = np.load(self._place(case, name), allow_pickle=False)
        except (OSError, ValueError, EOFError):
            return None
        return clip

    def forget(self, case: str) -> None:
        """The clips of a case that is whole."""
        shutil.rmtree(self.path / case, ignore_errors=True)

    def close(self) -> None:
        """Let others use it; it goes if nothing is in it."""
        self._lock.close()
        if not any(path.is_dir() for path in self.path.iterdir()):
            shutil.rmtree(self.path, ignore_errors=True)

    def _place(self, case: str, name: str) -> Path:
        return self.path / case / f"{hashlib.sha256(name.encode()).hexdigest()[:20]}.npy"


def earlier(folder: Path) -> dict[str, Any] | None:
    """What the latest comparison in `folder` wrote; None if there is none.

    Raises:
        OptionError: it cannot be read.
    """
    found = [path for path in folder.glob("comparison*.json") if path.is_file() and not path.is_symlink()]
    if not found:
        return None
    path = max(found, key=lambda path: path.stat().st_mtime)
    try:
        data = dict(json.loads(path.read_text(encoding="utf-8")))
        paths = [Path(data["unfinished"] or ".unfinished"), *(Path(place) for _, _, place in data["files"])]
        if any(place.is_absolute() or ".." in place.parts for place in paths) or paths[0].parts[1:]:
            raise ValueError("it names files outside of its folder")
        return data
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise OptionError(f"{path} is nothing to go on from ({describe(error)}); leave out resume.") from error


def restore(comparison: Comparison, data: dict[str, Any], more: bool) -> None:
    """Take over what an earlier call finished of the same comparison; what failed then is tried again.

    Args:
        comparison: is filled; it has no trials yet.
        data: of `earlier`.
        more: whether there may be variants that the earlier one had not.

    Raises:
        OptionError: it was begun with other settings.
    """
    was, now = data["facts"], plain(comparison.facts)
    other = sorted(key for key in {*was, *now} if key not in _MAY_DIFFER and was.get(key) != now.get(key))
    written = {row["name"]: row for row in data["variants"]}
    for results in comparison.rows:
        row = written.pop(results.variant.name, None)
        if row is None and more:
            continue
        if row is None or row["options"] != results.options or row["steps"] != results.steps:
            other.append(f"variant {results.variant.name!r}")
            continue
        results.trials = [_trial(trial) for trial in row["trials"]]
    other += [f"variant {name!r}" for name, row in written.items() if row["options"] is not None]
    if other:
        raise OptionError(
            f"the earlier comparison was begun with other settings ({', '.join(other)} differ); give the same ones to "
            "go on, or another folder."
        )
    comparison.variants += [
        Results(Variant(row["name"], None, row["steps"], row["note"]), row["steps"], list(map(_trial, row["trials"])))
        for row in written.values()
    ]
    comparison.run_steps, comparison.rest = data["run_steps"], data["rest"]
    comparison.alone = {passes.kind: passes.seconds for passes in (Passes(**kind) for kind in data["alone"])}


def _trial(data: dict[str, Any]) -> Trial:
    quality = data["quality"]
    if quality is not None:
        frames = tuple(math.inf if value is None else value for value in quality["psnr_frames"])
        kept = {field.name: quality[field.name] for field in fields(Quality)}
        lists = {name: tuple(value) for name, value in kept.items() if isinstance(value, list)}
        quality = Quality(**{**kept, **lists, "psnr_frames": frames})
    runs = tuple(Run.from_dict(run) for run in data["runs"])
    kept = {field.name: data[field.name] for field in fields(Trial)}
    return Trial(**{**kept, "runs": runs, "shape": tuple(data["shape"]), "quality": quality})
