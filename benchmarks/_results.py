"""What was measured so far, in a file that is whole after every run, and going on from such a file."""

from __future__ import annotations

import dataclasses
import json
import os
from pathlib import Path
from typing import Any

from _steps import Kind, Run, Split, forwards, means

__all__ = ["Results", "Section", "Trials"]


@dataclasses.dataclass
class Trials:
    """The runs of one variant.

    Attributes:
        runs: in the order in which they were made.
        cfg: whether guidance is truncated.
        steps: solver steps that the variant is about; where its runs have fewer, they are extrapolated.
        error: what went wrong; empty if nothing did.
        kinds: forwards in `steps` steps: expert, latent frames, count; empty where all compute every frame.
    """

    runs: list[Run] = dataclasses.field(default_factory=list)
    cfg: bool = False
    steps: int = 0
    error: str = ""
    kinds: list[tuple[str, int, int]] = dataclasses.field(default_factory=list)

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> Trials:
        """From what `dataclasses.asdict` made of it."""
        return cls(
            **{
                **data,
                "runs": [Run.from_dict(run) for run in data["runs"]],
                "kinds": [tuple(kind) for kind in data.get("kinds", ())],
            }
        )


@dataclasses.dataclass
class Section:
    """One host and clip: everything that is compared with one baseline.

    Attributes:
        host: the host's name.
        clip: ``FRAMESxWIDTHxHEIGHT``.
        offload: whether upstream moves its experts.
        steps: solver steps of the baseline.
        shift: of the schedule.
        solver: its name.
        truncation: of the variants with truncated guidance, at `steps`.
        latent_frames: of the clip.
        splits: steps of both experts, by the number of all steps.
        run_steps: steps that are really run; 0 until that is decided.
        alone: seconds of a single forward, by latent frames.
        decode_alone: seconds of decoding alone.
        rest_guess: seconds that a run takes beside its forwards, as far as can be told before the first.
        trials: by variant; the baseline's first.
    """

    host: str
    clip: str
    offload: bool
    steps: int
    shift: float
    solver: str
    truncation: Split
    latent_frames: int
    splits: dict[int, Split]
    run_steps: int = 0
    alone: dict[int, float] = dataclasses.field(default_factory=dict)
    decode_alone: float = 0.0
    rest_guess: float = 0.0
    trials: dict[str, Trials] = dataclasses.field(default_factory=dict)

    _identity = ("host", "clip", "offload", "steps", "shift", "solver", "truncation")

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> Section:
        """From JSON, whose keys are text and whose tuples are lists."""
        return cls(
            **{
                **data,
                "truncation": tuple(data["truncation"]),
                "splits": {int(steps): tuple(split) for steps, split in data["splits"].items()},
                "alone": {int(count): seconds for count, seconds in data["alone"].items()},
                "trials": {name: Trials.from_dict(trials) for name, trials in data["trials"].items()},
            }
        )

    def same(self, other: Section) -> bool:
        """Whether both are about the same, whatever was measured."""
        return all(getattr(self, name) == getattr(other, name) for name in self._identity)

    @property
    def extrapolated(self) -> bool:
        """Whether fewer steps are run than the section is about."""
        return bool(self.run_steps) and self.run_steps != self.steps

    def counts(self, trials: Trials) -> dict[Kind, int]:
        """Forwards of each kind in the steps that `trials` are about."""
        if trials.kinds:
            return {(expert, frames): count for expert, frames, count in trials.kinds}
        plain = forwards(self.splits[trials.steps], self.truncation if trials.cfg else (0, 0))
        return {(expert, self.latent_frames): count for expert, count in plain.items()}

    def untimed(self, trials: Trials) -> str:
        """Why the runs of `trials` cannot be extrapolated; empty if they can."""
        try:
            for run in trials.runs:
                self.seconds(run, trials)
        except ValueError as error:
            return f"not extrapolated: {error}"
        return ""

    def seconds(self, run: Run, trials: Trials) -> float:
        """Seconds of a run of the steps that `trials` are about: as measured, or extrapolated from `run`."""
        return run.seconds if run.steps == trials.steps else run.at(trials.steps, self.counts(trials), self._known())

    def _known(self) -> dict[Kind, float]:
        return means(run for trials in self.trials.values() for run in trials.runs)


class Results:
    """The sections of one file, and the machine that they are from.

    Args:
        path: of the JSON file; None keeps all in memory.
        facts: of the machine; a file in which one of them is another is not gone on from.
        command: that is running.
    """

    def __init__(self, path: Path | None, facts: dict[str, Any], command: str) -> None:
        self.path = path
        self.facts = facts
        self.commands = [command]
        self.sections: list[Section] = []

    def load(self, resume: bool) -> None:
        """Take over what is in the file, if there is one.

        Raises:
            ValueError: there is one and `resume` is not set, or it is from another machine or setting.
        """
        if self.path is None or not self.path.exists():
            return
        if not resume:
            raise ValueError(f"{self.path} is there already; go on from it with --resume, or name another folder")
        data = json.loads(self.path.read_text())
        known = data["facts"]  # of other hosts too, which say nothing of this one
        other = [
            f"{name} was {known[name]!r}, is {fact!r}"
            for name, fact in self.facts.items()
            if known.get(name, fact) != fact
        ]
        if other:
            raise ValueError(f"{self.path} is from another machine or setting: {'; '.join(other)}")
        self.facts = {**known, **self.facts}
        self.commands = [*data["commands"], *self.commands]
        self.sections = [Section.from_dict(section) for section in data["sections"]]

    def section(self, fresh: Section) -> Section:
        """The section that is about the same as `fresh`, which becomes one if there is none."""
        for section in self.sections:
            if section.same(fresh):
                return section
        self.sections.append(fresh)
        return fresh

    def to_dict(self) -> dict[str, Any]:
        """Plain data; `Section.from_dict` reads the sections back."""
        sections = [dataclasses.asdict(section) for section in self.sections]
        return {"facts": self.facts, "commands": self.commands, "sections": sections}

    def write(self, figures: dict[str, Any], text: str) -> None:
        """Write the JSON file, with `figures` beside what was measured, and `text` as Markdown beside it."""
        if self.path is None:
            return
        self.path.parent.mkdir(parents=True, exist_ok=True)
        _replace(self.path, json.dumps({**self.to_dict(), **figures}, indent=2) + "\n")
        _replace(self.path.with_suffix(".md"), text + "\n")


def _replace(path: Path, text: str) -> None:
    """Write a file that is never seen half-written, even if the process is ended meanwhile."""
    part = path.with_name(path.name + ".part")
    part.write_text(text)
    os.replace(part, path)
