"""What was measured so far, in a file that is whole after every run, and going on from such a file."""

from __future__ import annotations

import dataclasses
import functools
import json
import os
from pathlib import Path
from typing import Any

import halfframe
from _steps import Kind, Run, Split, means
from _variants import BASELINE, Clip, parse, shortened
from halfframe import Report

__all__ = ["Results", "Section", "Trials"]


@dataclasses.dataclass
class Trials:
    """The runs of one variant.

    Attributes:
        runs: in the order in which they were made.
        steps: solver steps that the variant is about; where its runs have fewer, they are extrapolated.
        error: what went wrong; empty if nothing did.
    """

    runs: list[Run] = dataclasses.field(default_factory=list)
    steps: int = 0
    error: str = ""


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
    run_steps: int = 0
    alone: dict[int, float] = dataclasses.field(default_factory=dict)
    decode_alone: float = 0.0
    rest_guess: float = 0.0
    trials: dict[str, Trials] = dataclasses.field(default_factory=dict)

    _identity = ("host", "clip", "offload", "steps", "shift", "solver", "truncation")

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> Section:
        """From JSON, whose keys are text and whose tuples are lists; of older files too, which have more in them."""
        section = cls(**{field.name: data[field.name] for field in dataclasses.fields(cls)})
        section.truncation = (data["truncation"][0], data["truncation"][1])
        section.alone = {int(count): seconds for count, seconds in data["alone"].items()}
        section.trials = {
            name.replace("fewer steps: ", "fewer steps, "): Trials(
                [Run.from_dict(run) for run in trials["runs"]], trials["steps"], trials["error"]
            )
            for name, trials in data["trials"].items()
        }
        return section

    def same(self, other: Section) -> bool:
        """Whether both are about the same, whatever was measured."""
        return all(getattr(self, name) == getattr(other, name) for name in self._identity)

    @property
    def extrapolated(self) -> bool:
        """Whether fewer steps are run than the section is about."""
        return bool(self.run_steps) and self.run_steps != self.steps

    def plan(self, name: str, steps: int) -> Report:
        """What a variant computes in a run of `steps` steps."""
        return _plan(Clip.parse(self.clip), name, self.truncation, self.steps, steps, self.shift, self.solver)

    def kinds(self, name: str, steps: int) -> dict[Kind, int]:
        """Its forwards by kind."""
        report = self.plan(name, steps)
        return {(one.expert, count): n for one in (report.high, report.low) for count, n in one.passes_by_frames}

    def split(self, steps: int) -> Split:
        """How many of `steps` steps each expert has."""
        report = self.plan(BASELINE.name, steps)
        return report.high.steps, report.low.steps

    def untimed(self, name: str) -> str:
        """Why the runs of a variant cannot be extrapolated; empty if they can."""
        try:
            for run in self.trials[name].runs:
                self.seconds(run, name)
        except ValueError as error:
            return f"not extrapolated: {error}"
        return ""

    def seconds(self, run: Run, name: str, steps: int = 0) -> float:
        """Seconds of a run of the steps that a variant is about, or of `steps`: as measured, or extrapolated."""
        steps = steps or self.trials[name].steps
        if run.steps == steps:
            return run.seconds
        known = means(run for trials in self.trials.values() for run in trials.runs)
        return run.at(steps, self.kinds(name, steps), known)


@functools.cache
def _plan(clip: Clip, name: str, truncation: Split, target: int, steps: int, shift: float, solver: Any) -> Report:
    plain = name == BASELINE.name or name.startswith("fewer steps")
    options = {"strategy": None} if plain else shortened(parse(name, truncation).options, target, steps)
    assert options is not None
    options.pop("prefetch", None)
    return halfframe.plan(
        size=clip.size,
        frame_num=clip.video_frames,
        sampling_steps=steps,
        shift=shift,
        sample_solver=solver,
        **options,
    ).report


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
