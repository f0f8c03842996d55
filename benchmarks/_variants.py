"""What is compared: plain runs, strategies, truncated guidance, prefetched experts, and fewer steps at equal cost."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

from _steps import Split
from halfframe import Guidance
from halfframe.compare import Variant
from halfframe.plugins.configuration import configure
from halfframe.sampling.frames import latent_frame_count

__all__ = ["BASELINE", "OFFLOAD", "RESIDENT", "Clip", "parse", "shortened"]

BASELINE = Variant("baseline")
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


def parse(text: str, truncation: Split) -> Variant:
    """A variant from ``STRATEGY[:option=value,...][+cfg][+prefetch]``, or ``cfg`` or ``prefetch`` alone.

    Args:
        text: as the command line and the tables have it.
        truncation: of guidance, for ``cfg``: so many last steps, and so many last high-noise steps.

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
    options: dict[str, Any] = {"strategy": head or "none"}
    configure(**options)  # here and not after minutes of building and warming up
    if "cfg" in extras:
        options["guidance"] = Guidance(skip_last=truncation[0], skip_last_high=truncation[1])
    if "prefetch" in extras:
        options["prefetch"] = True
    return Variant(text, options)


def shortened(options: Mapping[str, Any] | None, target: int, steps: int) -> dict[str, Any] | None:
    """`options` for a run of `steps` steps that stands for one of `target`; what is truncated at all stays so."""
    if options is None or steps == target or "guidance" not in options:
        return None if options is None else dict(options)
    guidance = options["guidance"]
    last, last_high = (
        max(1, round(count * steps / target)) if count else 0 for count in (guidance.skip_last, guidance.skip_last_high)
    )
    return {**options, "guidance": dataclasses.replace(guidance, skip_last=last, skip_last_high=last_high)}
