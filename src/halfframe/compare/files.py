"""Comparing clips that exist already: what they look like, not what they cost."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from halfframe.compare import metrics
from halfframe.compare.facts import machine_facts
from halfframe.compare.output import Writer
from halfframe.compare.quality import quality
from halfframe.compare.results import Comparison, ComparisonError, Results, Trial, Variant, describe
from halfframe.compare.videos import read_video, to_bytes
from halfframe.errors import OptionError

__all__ = ["compare_files"]


def compare_files(
    paths: Sequence[str | Path],
    *,
    output: str | Path | None = None,
    temporal_stride: int = 4,
    progress: Callable[[str], None] | None = None,
    facts: dict[str, Any] | None = None,
) -> Comparison:
    """Measure video files against the first of them.

    Args:
        paths: the baseline, then the variants: mp4 and the like, ``.npy``, ``.pt``; all of one length and size.
        output: folder for tables and pictures; None for none.
        temporal_stride: video frames per latent frame.
        progress: called with one line of text at a time.
        facts: for the heading of the tables.

    Raises:
        ComparisonError: the baseline cannot be read. A variant that cannot is reported with its error.
        OptionError: fewer than two files.
    """
    if len(paths) < 2:
        raise OptionError(f"{len(paths)} video files; needed: a baseline and one variant or more.")
    tell = progress or (lambda _: None)
    rows = [Results(Variant(name), None) for name in _names([Path(path) for path in paths])]
    lossy = any(Path(path).suffix not in (".npy", ".pt") for path in paths)
    heading: dict[str, Any] = {
        **{key: value for key, value in machine_facts().items() if key in ("date", "halfframe")},
        "source": "finished files; what they cost to make is not known",
        "files": [str(path) for path in paths],
        **({"lossy": "yes; the figures include what the video codec lost"} if lossy else {}),
        **(facts or {}),
    }
    comparison = Comparison(rows[0], rows[1:], heading)
    writer = Writer(output)
    clips = {}
    reference: metrics.Video | None = None
    for results, path in zip(rows, paths, strict=True):
        tell(f"measuring {path}")
        try:
            video = read_video(path)
            measured = None if reference is None else quality(video, reference)
            ratio = metrics.video_duplication_ratio(video, temporal_stride)
        except Exception as error:
            results.error = describe(error)
            tell(f"{path} FAILED: {results.error}")
            if reference is None:
                raise ComparisonError(f"the baseline cannot be used: {error}", comparison) from error
            continue
        reference = video if reference is None else reference
        if results is rows[0]:
            heading["video"] = f"{video.shape[0]} frames {video.shape[2]}x{video.shape[1]}"
        results.trials.append(Trial("", None, (), video.shape, ratio, measured))
        clips[results.variant.name] = to_bytes(video)
        writer.tables(comparison)
    writer.pictures(comparison, clips, "side-by-side", "")
    writer.finish(comparison)
    return comparison


def _names(paths: Sequence[Path]) -> list[str]:
    """File names without their endings, or whole paths, numbered if need be, where those are not unique."""
    stems = [path.stem for path in paths]
    if len(set(stems)) == len(stems):
        return stems
    whole = [str(path) for path in paths]
    return whole if len(set(whole)) == len(whole) else [f"{i}: {path}" for i, path in enumerate(whole)]
