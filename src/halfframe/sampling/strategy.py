"""What a strategy is: three methods, called by the run, that do not depend on the host.

The run always carries full-length latents, so callbacks, interrupts and schedulers never see another shape.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TypeAlias

import torch
from torch import Tensor

from halfframe.report.cost import Expert
from halfframe.sampling.frame_map import FrameMap
from halfframe.sampling.frames import TIME_DIM
from halfframe.sampling.weights import Known, checked_weights, weighted_sum, weights_text

__all__ = ["Allocation", "Expert", "Given", "Move", "Reuse", "Step", "Strategy", "frames_of", "label_of"]


@dataclass(frozen=True, slots=True)
class Step:
    """One step of the schedule, before the expert runs.

    Attributes:
        index: position in the schedule, from 0.
        num_steps: length of the schedule.
        timestep: 0..1000, as passed to the expert.
        sigma: noise level 0..1, ``x = (1 - sigma) x0 + sigma eps``, from the scheduler's own table.
        expert: which expert runs, ``"high"`` or ``"low"``.
        expert_index: position among this expert's steps, from 0.
        expert_steps: how many steps this expert has.
        num_frames: latent frames of the full clip.
        boundary: timestep 0..1000 down to which the high-noise expert is used.
        conditioned: whether the expert gets per-frame conditioning, as in image-to-video.
        conditioning_frames: positions of frames with their own conditioning (`last_image`), always computed.
    """

    index: int
    num_steps: int
    timestep: float
    sigma: float
    expert: Expert
    expert_index: int
    expert_steps: int
    num_frames: int
    boundary: float = 0.0
    conditioned: bool = False
    conditioning_frames: tuple[int, ...] = ()


@dataclass(frozen=True, slots=True)
class Allocation:
    """The host is about to draw the noise that the run starts from.

    Attributes:
        shape: required shape of the latents, ``(C, F, H, W)`` or ``(B, C, F, H, W)``.
        dtype: required dtype of the latents.
        device: required device of the latents.
        draw: draws standard normal noise of a given shape from the user's generator, on the host's device and in the
            host's dtype. The same shape as `shape` gives exactly what the host would have drawn.
        conditioning_frames: positions of frames that are computed at every step, whatever the strategy.
    """

    shape: tuple[int, ...]
    dtype: torch.dtype
    device: torch.device
    draw: Callable[[tuple[int, ...]], Tensor]
    conditioning_frames: tuple[int, ...] = ()

    @property
    def num_frames(self) -> int:
        """Latent frames of the full clip."""
        return self.shape[TIME_DIM]


@dataclass(frozen=True, slots=True)
class Reuse:
    """A step without a forward pass: for each pass, the x0 of earlier steps stands in.

    ``v = (x - x0) / sigma``, with the weighted sum of the x0 of the last steps that were no reuses themselves, also for
    skipped guidance passes. `Guidance` has no say at such a step: both passes are reused.

    Attributes:
        weights: of those x0, latest first, 1 to 4; ``(1.0,)`` reuses the last one unchanged.

    Raises:
        OptionError: `weights` are not 1 to 4 finite numbers.
    """

    weights: tuple[float, ...] = (1.0,)

    def __post_init__(self) -> None:
        object.__setattr__(self, "weights", checked_weights("Reuse", self.weights))

    def shown(self, known: Known) -> Tensor | None:
        """The x0 to use, in float32; None if fewer predictions are `known` than needed."""
        return weighted_sum(self.weights, known)

    @property
    def needs(self) -> int:
        """How many computed steps must come before it."""
        return len(self.weights)


@dataclass(frozen=True, slots=True, eq=False)
class Given:
    """A step without a forward pass, whose velocities are given.

    Attributes:
        velocities: of all frames, ``(..., F, H, W)``, one for each forward pass that the host makes.
    """

    velocities: tuple[Tensor, ...]


Move: TypeAlias = FrameMap | Reuse | Given | None
"""What is done at a step; None computes every frame."""


def label_of(move: Move) -> str:
    """A move as reports and recipes name it: ``full``, ``merge:2``, ``reuse``, ``reuse:1.72,-0.72``, ..."""
    if isinstance(move, FrameMap):
        return move.label
    if isinstance(move, Reuse):
        return f"reuse:{weights_text(move.weights)}".rstrip(":")
    return "full" if move is None else type(move).__name__.lower()


def frames_of(move: Move, num_frames: int) -> int:
    """How many latent frames the expert gets at a step with this move, in a clip of `num_frames`."""
    if isinstance(move, FrameMap):
        return len(move.down)
    return num_frames if move is None else 0


class Strategy:
    """Base class of strategies, which say what the experts compute at each step. Override the methods that differ.

    The base class computes every frame and changes nothing. An instance serves one `halfframe.enabled` block.
    """

    name: str = "full"

    def __str__(self) -> str:
        """The strategy with its options, as reports show it."""
        return self.name

    def allocate(self, allocation: Allocation) -> Tensor:
        """The latents to start from, of `allocation.shape`; by default, what the host would have drawn."""
        return allocation.draw(allocation.shape)

    def accept(self, steps: Sequence[Step]) -> None:
        """Raise `StrategyError` if the schedule of these steps is none that it can serve; by default, it serves all.

        Called once, before the moves are asked for. A host that sees one expert at a time gives the steps of that one.
        """

    def move(self, step: Step) -> Move:
        """The move at `step`; None computes every frame. Called for all steps in order, before the first one runs."""
        return None

    def at_switch(self, latents: Tensor) -> Tensor:
        """Full-length latents ``(..., F, H, W)`` after the expert switch; by default unchanged.

        Called with the latents and, if it turns out to be linear, with every tensor of the scheduler's history.
        """
        return latents
