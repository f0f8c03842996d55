"""Arithmetic of shortened runs: how many steps stand for how many, and what they say of the whole. Nothing is run."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable
from typing import Any

__all__ = ["EXPERTS", "Forwards", "Kind", "Run", "Split", "choose_steps", "means"]

EXPERTS = ("high", "low")
Kind = tuple[str, int]
"""The expert of a forward, and the latent frames that it computes."""
Split = tuple[int, int]
"""Steps of the high-noise and of the low-noise expert."""


@dataclasses.dataclass(frozen=True)
class Forwards:
    """The forwards of one kind in a run.

    Attributes:
        expert: ``"high"`` or ``"low"``.
        latent_frames: frames that each of them computed.
        count: how many there were.
        seconds: what they took together.
    """

    expert: str
    latent_frames: int
    count: int
    seconds: float


@dataclasses.dataclass(frozen=True)
class Run:
    """One measured call of a pipeline; times are in seconds, the device synchronised around every part.

    Attributes:
        steps: solver steps.
        seconds: the whole call.
        forwards: the experts' part, by kind.
        solver: in the solver's steps.
        vae: in decoding.
        text: in the text encoder.
        enabling: entering and leaving ``halfframe.enabled``; not within `seconds`.
        finite: whether the latents that were decoded are finite, which says that no time was had from NaNs.
        peak_gpu_gib: peak of allocated device memory in this call, the most of all processes; None without a GPU.
        peak_host_gib: peak of the process's memory up to here, not of this call.
        report: halfframe's; None for a plain run.
        off_by: relative distance of the latents from those they were checked against; None if they were not.
    """

    steps: int
    seconds: float
    forwards: tuple[Forwards, ...]
    solver: float = 0.0
    vae: float = 0.0
    text: float = 0.0
    enabling: float = 0.0
    finite: bool = True
    peak_gpu_gib: float | None = None
    peak_host_gib: float | None = None
    report: dict[str, Any] | None = None
    off_by: float | None = None

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> Run:
        """From what `dataclasses.asdict` made of a run, also by way of JSON."""
        return cls(**{**data, "forwards": tuple(Forwards(**kind) for kind in data["forwards"])})

    @property
    def rest(self) -> float:
        """All that is no forward."""
        return self.seconds - sum(kind.seconds for kind in self.forwards)

    @property
    def own(self) -> float:
        """What is left of `rest` without solver, VAE and text encoder: the loop's own share, and halfframe's."""
        return self.rest - self.solver - self.vae - self.text

    def at(self, steps: int, counts: dict[Kind, int], known: dict[Kind, float] | None = None) -> float:
        """Seconds that this run would have taken with `steps` steps and `counts` forwards of each kind.

        Each forward at its kind's mean in this run, or else as `known` from others; each solver step at the solver's,
        the rest as it was. A mean over all of an expert's forwards would be wrong wherever only some steps are merged.
        """
        seconds = {**(known or {}), **means([self])}
        total = self.rest - self.solver + self.solver * steps / self.steps
        for kind, count in counts.items():
            if count and kind not in seconds:
                raise ValueError(
                    f"no forward of the {kind[0]}-noise expert on {kind[1]} latent frames was timed, which "
                    f"says nothing of {count} such; run more steps"
                )
            total += count * seconds[kind] if count else 0.0
        return total

    def ideal(self, baseline: Run, alone: dict[int, float]) -> Run:
        """This run with each forward at the time that it takes `alone`, and what is no forward as in `baseline`."""
        kinds = tuple(
            dataclasses.replace(kind, seconds=kind.count * alone[kind.latent_frames]) for kind in self.forwards
        )
        seconds = baseline.rest + sum(kind.seconds for kind in kinds)
        return dataclasses.replace(baseline, steps=self.steps, seconds=seconds, forwards=kinds)


def means(runs: Iterable[Run]) -> dict[Kind, float]:
    """Mean seconds of a forward of each kind."""
    totals: dict[Kind, list[float]] = {}
    for kind in (kind for run in runs for kind in run.forwards if kind.count):
        total = totals.setdefault((kind.expert, kind.latent_frames), [0.0, 0.0])
        total[0] += kind.seconds
        total[1] += kind.count
    return {kind: seconds / count for kind, (seconds, count) in totals.items()}


def choose_steps(target: int, largest: int, split: Callable[[int], Split]) -> int:
    """The number of steps up to `largest` whose split between the experts is nearest to that of `target` steps.

    Of equally near ones the largest; where `target` has steps of both experts so has the choice, even if it must then
    be larger than `largest`.
    """
    wanted = split(target)
    fitting = [n for n in range(1, target + 1) if all(b > 0 for a, b in zip(wanted, split(n), strict=True) if a)]
    candidates = [n for n in fitting if n <= largest] or fitting[:1]
    return min(candidates, key=lambda n: (abs(split(n)[0] / n - wanted[0] / target), -n))
