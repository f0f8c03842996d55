"""The videos of what was tuned, for the report."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

from halfframe.compare.report_page import clip_sheets, read_sheets
from halfframe.compare.videos import as_video, to_bytes
from halfframe.enabled import enabled
from halfframe.errors import HalfframeWarning
from halfframe.strategies.recipe import Recipe
from halfframe.tuning.result import Tuning

__all__ = ["clips_of"]


def clips_of(
    tuning: Tuning, pipe: Any, call: Callable[[int], Any], page: Path, progress: Callable[[str], None]
) -> tuple[list[dict[str, Any]], list[str]]:
    """One clip: plain, by each recipe and strategy, and with fewer steps that cost as much; see `clip_sheets`. Remarks.

    Args:
        tuning: what was found.
        pipe: the pipeline.
        call: ``(steps)`` calls it for the clip.
        page: of an earlier report, whose clips are taken if they are of the same recipes.
        progress: is told what goes on.
    """
    runs: dict[str, tuple[Recipe | str | None, int]] = {f"plain, {tuning.steps} steps": (None, tuning.steps)}
    for found in tuning.shown:
        runs[f"{found.label}, cost {found.cost:.2f}"] = (found.strategy, found.steps)
        rival = tuning.rival(found.cost, "fewer steps")
        if rival is not None:
            runs[f"plain, {rival.steps} step{'s' if rival.steps > 1 else ''}"] = (None, rival.steps)
    key = "; ".join([*runs, *(f"{found.text}: {found.error}" for found in tuning.shown)])
    known = [case for case in read_sheets(page) if case["key"] == key]
    if known:
        return known, []
    clips = {}
    try:
        for number, (name, (strategy, steps)) in enumerate(runs.items(), 1):
            progress(f"clip {number} of {len(runs)} for the report: {name}")
            if strategy is None:
                output = call(steps)
            else:
                with enabled(pipe, strategy), warnings.catch_warnings():
                    warnings.simplefilter("ignore", HalfframeWarning)  # a recipe for a large budget may skip nothing
                    output = call(steps)
            clips[name] = to_bytes(as_video(output))
        return [clip_sheets(key, "the first clip", clips)], []
    except Exception as error:  # the recipes are found and written; only the report goes without clips
        return [], [f"there are no clips here: {type(error).__name__}: {error}"]
