"""What is compared: plain runs, strategies, truncated guidance, prefetched experts, and fewer steps at equal cost."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import halfframe
from _steps import Split, scaled
from halfframe import Guidance
from halfframe.plugins.configuration import configure
from halfframe.sampling.frames import latent_frame_count
from halfframe.sampling.schedule import planned_move, steps_of
from halfframe.sampling.strategy import Expert, Step, frames_of

__all__ = ["BASELINE", "OFFLOAD", "RESIDENT", "Clip", "Variant", "equal_steps", "kept_counts", "parse", "planned_kinds"]

RESIDENT = (
    "self-duplicate",
    "interleave",
    "interleave:stride=4",
    "self-duplicate+cfg",
    "interleave+cfg",
    "interleave:stride=4+cfg",
    "cfg",
)
"""What is compared with the baseline where both experts stay on the GPU."""
OFFLOAD = ("self-duplicate", "prefetch", "self-duplicate+prefetch")
"""What is compared with the baseline where upstream moves its experts."""


@dataclasses.dataclass(frozen=True)
class Clip:
    """A size of video: `video_frames` is 4n+1."""

    video_frames: int
    width: int
    height: int

    @classmethod
    def parse(cls, text: str) -> Clip:
        """From ``FRAMESxWIDTHxHEIGHT``."""
        parts = text.lower().split("x")
        if len(parts) != 3 or not all(part.isdigit() for part in parts):
            raise ValueError(f"{text!r} is no clip; give FRAMESxWIDTHxHEIGHT, for example 49x832x480")
        clip = cls(*map(int, parts))
        if clip.video_frames % 4 != 1 or min(clip.size) < 16 or clip.width % 16 or clip.height % 16:
            raise ValueError(f"clip {text!r} does not fit; needed: 4n+1 frames, width and height in multiples of 16")
        return clip

    @property
    def size(self) -> tuple[int, int]:
        """Width and height in pixels."""
        return self.width, self.height

    @property
    def latent_frames(self) -> int:
        """Frames of the latents."""
        return latent_frame_count(self.video_frames)

    @property
    def tokens_per_frame(self) -> int:
        """Tokens of a latent frame."""
        return (self.height // 16) * (self.width // 16)

    def __str__(self) -> str:
        return f"{self.video_frames}x{self.width}x{self.height}"


@dataclasses.dataclass(frozen=True)
class Variant:
    """One way to make the clip.

    Attributes:
        name: as the command line and the tables have it.
        options: of ``halfframe.enabled``, truncation and prefetch apart; None for a plain run.
        cfg: whether guidance is truncated.
        prefetch: whether experts are prefetched.
        steps: of a plain run with fewer steps; None for as many as the baseline's.
    """

    name: str
    options: dict[str, Any] | None = None
    cfg: bool = False
    prefetch: bool = False
    steps: int | None = None

    def enabling(self, truncation: Split, target: int, steps: int) -> dict[str, Any] | None:
        """What `halfframe.enabled` is given for a run of `steps` steps that stands for one of `target`."""
        if self.options is None:
            return None
        last, last_high = scaled(truncation, target, steps) if self.cfg else (0, 0)
        truncated = {"guidance": Guidance(skip_last=last, skip_last_high=last_high)} if self.cfg else {}
        return {**self.options, **truncated, **({"prefetch": True} if self.prefetch else {})}


BASELINE = Variant("baseline")


def parse(text: str) -> Variant:
    """A variant from ``STRATEGY[:option=value,...][+cfg][+prefetch]``, or ``cfg`` or ``prefetch`` alone.

    Raises:
        ValueError: it is none.
        HalfframeError: the strategy is unknown or takes no such option.
    """
    head, *extras = text.split("+")
    named = bool(head)
    if head in ("cfg", "prefetch"):
        head, extras = "", [head, *extras]
    if not named or set(extras) - {"cfg", "prefetch"} or len(set(extras)) < len(extras):
        raise ValueError(f"{text!r} is no variant; give STRATEGY[:option=value,...][+cfg][+prefetch], cfg or prefetch")
    strategy = head or "none"
    configure(strategy)  # here and not after minutes of building and warming up
    return Variant(text, {"strategy": strategy}, "cfg" in extras, "prefetch" in extras)


def kept_counts(clip: Clip, variants: list[Variant], steps: int, shift: float, solver: Any) -> list[int]:
    """Distinct numbers of latent frames that an expert is called with in any of `variants`, largest first."""
    counts = {clip.latent_frames}
    for variant in variants:
        options = variant.options or {"strategy": None}
        plan = halfframe.plan(
            size=clip.size,
            frame_num=clip.video_frames,
            sampling_steps=steps,
            shift=shift,
            sample_solver=solver,
            **options,
        )
        counts.update(plan.report.high.latent_frames, plan.report.low.latent_frames)
    return sorted(counts, reverse=True)


def planned_kinds(clip: Clip, variant: Variant, section: Any) -> list[tuple[str, int, int]]:
    """Forwards of `variant` in all the section's steps by kind: expert, latent frames, count."""
    options = variant.enabling(section.truncation, section.steps, section.steps) or {}
    configuration = configure(**options)
    high, low = section.splits[section.steps]
    counts: dict[tuple[str, int], int] = {}
    delta_known: set[str] = set()
    for step in schedule_steps(section.steps, high, low, section.shift, section.solver, clip.latent_frames):
        frames = frames_of(planned_move(step, configuration.strategy), clip.latent_frames)
        if not frames:
            continue
        rule = configuration.guidance.at(step)
        single = rule in ("conditional", "delta") or (rule == "delta if known" and step.expert in delta_known)
        if not single:
            delta_known.add(step.expert)
        kind = (step.expert, frames)
        counts[kind] = counts.get(kind, 0) + (1 if single else 2)
    return [(expert, frames, count) for (expert, frames), count in counts.items()]


def schedule_steps(steps: int, high: int, low: int, shift: float, solver: Any, frames: int) -> list[Step]:
    """The schedule's steps, split between the experts as the host's own solver does."""
    start = 0.999 if solver == "unipc" else 1.0
    even = [start * (1 - index / steps) for index in range(steps)]
    sigmas = [shift * sigma / (1 + (shift - 1) * sigma) for sigma in even]
    experts: list[Expert] = [*(["high"] * high), *(["low"] * low)]  # type: ignore[list-item]
    like = Step(0, 0, 0.0, 0.0, "high", 0, 0, frames)
    return steps_of([1000 * sigma for sigma in sigmas], sigmas, experts, like)


def equal_steps(seconds: float, rest: float, step: float, steps: int) -> int | None:
    """Steps of a plain run nearest to `seconds`, of which `rest` are none of its steps'; None for all of `steps`.

    Args:
        seconds: what the rival takes.
        rest: what a plain run takes beside its steps.
        step: what one of its steps takes.
        steps: of the baseline.
    """
    count = max(1, math.floor((seconds - rest) / step + 0.5))
    return count if count < steps else None
