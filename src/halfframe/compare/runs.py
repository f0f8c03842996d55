"""One timed call, where its time went, and what a shortened one says of a whole one. Nothing is run here."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

__all__ = ["EXPERTS", "Kind", "Passes", "Run", "by_kind", "choose_steps", "means"]

EXPERTS = ("high", "low")
Kind = tuple[str, int]
"""The expert of a forward pass, and the latent frames that it computes."""


@dataclass(frozen=True, slots=True)
class Passes:
    """The forward passes of one kind in a run: how many, and what they took together."""

    expert: str
    latent_frames: int
    count: int
    seconds: float

    @property
    def kind(self) -> Kind:
        """Expert and latent frames."""
        return self.expert, self.latent_frames


@dataclass(frozen=True, slots=True)
class Run:
    """One call of a pipeline; times are in seconds, the device synchronised.

    Attributes:
        seconds: wall time of the whole call.
        steps: that were run; None where that is not known.
        cpu_seconds: of this process; None where the work is done elsewhere.
        passes: the experts' part, by kind; empty where the parts were not timed, and all below as well.
        parts: seconds in the ``"scheduler"``, in the ``"vae"``'s decoding and in the ``"text"`` encoder.
        enabling: entering and leaving ``halfframe.enabled``; not within `seconds`.
        finite: whether the latents that were decoded are finite, which says that no time was had from NaNs.
        peak_gpu_gib: of allocated device memory in this call, the most of all processes; None without a GPU.
        peak_host_gib: of the process's memory up to here, not of this call.
        off_by: relative distance of the latents from those they were checked against; None if they were not.
    """

    seconds: float
    steps: int | None = None
    cpu_seconds: float | None = None
    passes: tuple[Passes, ...] = ()
    parts: Mapping[str, float] = field(default_factory=dict)
    enabling: float = 0.0
    finite: bool = True
    peak_gpu_gib: float | None = None
    peak_host_gib: float | None = None
    off_by: float | None = None

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Run:
        """From what `dataclasses.asdict` made of a run, also by way of JSON."""
        return cls(**{**data, "passes": tuple(Passes(**kind) for kind in data["passes"])})

    @property
    def rest(self) -> float:
        """All that is no forward pass."""
        return self.seconds - sum(kind.seconds for kind in self.passes)

    @property
    def own(self) -> float:
        """What is left of `rest` without scheduler, VAE and text encoder: the loop's own share, and halfframe's."""
        return self.rest - sum(self.parts.values())

    def at(self, steps: int, counts: Mapping[Kind, int], known: Mapping[Kind, float]) -> float:
        """Seconds that this run would have taken with `steps` steps and `counts` passes of each kind.

        Each pass takes what is `known` of its kind; scheduler steps are as long as here, the rest is as it was. A mean
        over all of an expert's passes would be wrong wherever only some of its steps are shortened.
        """
        scheduler = self.parts.get("scheduler", 0.0)
        rest = self.rest - scheduler + scheduler * steps / (self.steps or steps)
        return rest + sum(count * known[kind] for kind, count in counts.items())


def by_kind(report: Mapping[str, Any]) -> dict[Kind, int]:
    """How many forward passes of each kind halfframe's report of a run, or of a planned one, counts."""
    return {(expert, frames): count for expert in EXPERTS for frames, count in report[expert]["passes_by_frames"]}


def means(runs: Iterable[Run]) -> dict[Kind, float]:
    """Mean seconds of a forward pass of each kind."""
    totals: dict[Kind, tuple[int, float]] = {}
    for passes in (passes for run in runs for passes in run.passes if passes.count):
        count, seconds = totals.get(passes.kind, (0, 0.0))
        totals[passes.kind] = count + passes.count, seconds + passes.seconds
    return {kind: seconds / count for kind, (count, seconds) in totals.items()}


def choose_steps(target: int, largest: int, split: Callable[[int], tuple[int, int]]) -> int:
    """The number of steps up to `largest` whose split between the experts is nearest to that of `target` steps.

    Of equally near ones the largest; where `target` has steps of both experts so has the choice, even if it must then
    be larger than `largest`.
    """
    wanted = split(target)
    fitting = [n for n in range(1, target + 1) if all(b > 0 for a, b in zip(wanted, split(n), strict=True) if a)]
    candidates = [n for n in fitting if n <= largest] or fitting[:1]
    return min(candidates, key=lambda n: (abs(split(n)[0] / n - wanted[0] / target), -n))
