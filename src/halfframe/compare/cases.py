"""The cases of a session, a prompt with a seed each, and the clips that were made of them."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from halfframe.compare.metrics import Video
from halfframe.compare.output import Writer
from halfframe.compare.results import Comparison, Results
from halfframe.compare.videos import to_bytes

__all__ = ["Case"]


@dataclass(slots=True)
class Case:
    """One prompt with one seed.

    Attributes:
        prompt: what is asked for.
        seed: of the noise.
        label: for lines of progress.
        slug: for names of files.
        reference: the baseline's clip.
        videos: everyone's clip as bytes, for the pictures.
    """

    prompt: str
    seed: int
    label: str
    slug: str
    reference: Video | None = None
    videos: dict[str, npt.NDArray[np.uint8]] = field(default_factory=dict)

    def take_up(self, comparison: Comparison, writer: Writer) -> int:
        """Take the clips that an earlier call left; without the baseline's, that one is made again.

        Returns:
            How many of the baseline's runs were taken back for that.
        """
        taken_back = 0
        for results in comparison.rows:
            trial, name = results.trial(self.prompt, self.seed), results.variant.name
            clip = writer.unfinished.kept(self.slug, name) if trial and writer.unfinished else None
            if clip is not None:
                self.videos[name] = to_bytes(clip)
                writer.clip(comparison, self.videos[name], self.slug, name)
            if results is comparison.baseline:
                self.reference = clip
                if trial is not None and clip is None:
                    results.trials.remove(trial)
                    taken_back = len(trial.runs)
        return taken_back

    def keep(self, comparison: Comparison, results: Results, video: Video, writer: Writer) -> None:
        """Keep a clip for the pictures, for what it is compared with, and for a later call."""
        name, notes = results.variant.name, comparison.notes
        if name in self.videos:
            if not np.array_equal(to_bytes(video), self.videos[name]):
                note = f"{name}: another run of the same prompt and seed gave another clip; figures are of the first"
                notes += [note] if note not in notes else []
            return
        self.reference = video if self.reference is None else self.reference
        self.videos[name] = to_bytes(video)
        if writer.unfinished is not None:
            is_baseline = results is comparison.baseline
            writer.unfinished.keep(self.slug, name, video if is_baseline else self.videos[name])
