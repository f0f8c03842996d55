"""What a strategy is: three questions, asked by the run and answered without knowing the host.

The run always carries latents of full length, so that callbacks, interrupts and schedulers never meet another shape.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TypeAlias

import torch
from torch import Tensor

from halfframe.errors import OptionError
from halfframe.report.cost import Expert
from halfframe.sampling.frame_map import FrameMap
from halfframe.sampling.frames import TIME_DIM

__all__ = ["Allocation", "Expert", "Given", "Move", "Reuse", "Step", "Strategy", "frames_of", "label_of"]


@dataclass(frozen=True, slots=True)
class Step:
    """One step of the schedule, before the expert runs.

    Attributes:
        index: position in the schedule, from 0.
        num_steps: length of the schedule.
        timestep: 0..1000, as the expert is given it.
        sigma: noise level 0..1, ``x = (1 - sigma) x0 + sigma eps``, from the scheduler's own table.
        expert: which expert runs, ``"high"`` or ``"low"``.
        expert_index: position among this expert's steps, from 0.
        expert_steps: how many steps this expert has.
        num_frames: latent frames of the clip that the expert is called for.
        boundary: timestep 0..1000 down to which the high-noise expert serves.
        conditioned: whether the expert is given conditions that go with the frames, as image-to-video's are.
        conditioning_frames: positions of frames with a condition of their own (`last_image`), always computed.
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
        shape: of the latents that must come out, ``(C, F, H, W)`` or ``(B, C, F, H, W)``.
        dtype: of the latents that must come out.
        device: of the latents that must come out.
        draw: draws standard normal noise of a given shape from the user's generator, on the host's device and in the
            host's dtype. The same shape as `shape` gives exactly what the host would have drawn.
        conditioning_frames: positions of frames that are computed at every step, whatever the strategy says.
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
    """A step without a forward pass: what the last computed step said the clip shows stands in, for each pass.

    ``v = (x - x0) / sigma`` with the x0 of the last step that was not itself a reuse, stand-ins for guidance included.
    `Guidance` has no say at such a step: both passes are reused.

    Attributes:
        extend: how much of the change of x0 between the last two such steps is added, in proportion to the noise level:
            1 goes on in a straight line, 0 stands still.

    Raises:
        OptionError: `extend` is not a finite number.
    """

    extend: float = 0.0

    def __post_init__(self) -> None:
        number = isinstance(self.extend, int | float) and not isinstance(self.extend, bool)
        if not number or not math.isfinite(self.extend):
            raise OptionError(f"Reuse: extend must be a finite number, got {self.extend!r}.")

    def shown(self, known: Sequence[tuple[float, Tensor]], sigma: float) -> Tensor | None:
        """The x0 that stands in at `sigma`; None if fewer predictions are `known` than it needs.

        Args:
            known: noise levels and x0 of the computed steps, the latest last; no two neighbours of one level.
            sigma: of the step.
        """
        if len(known) < self.needs:
            return None
        level, latest = known[-1]
        if not self.extend:
            return latest
        before, earlier = known[-2]
        return latest + self.extend * (sigma - level) / (level - before) * (latest - earlier)

    @property
    def needs(self) -> int:
        """How many computed steps there must be before."""
        return 2 if self.extend else 1


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
    """A move as reports and recipes name it: ``full``, ``merge:2``, ``reuse``, ``extend:1``, ..."""
    if isinstance(move, FrameMap):
        return move.label
    if isinstance(move, Reuse) and move.extend:
        return f"extend:{move.extend:g}"
    return "full" if move is None else type(move).__name__.lower()


def frames_of(move: Move, num_frames: int) -> int:
    """How many latent frames an expert is given at such a step of a clip of `num_frames`."""
    if isinstance(move, FrameMap):
        return len(move.down)
    return num_frames if move is None else 0


class Strategy:
    """Base class: what the experts compute at each step. Override what differs.

    As it stands it computes every frame and changes nothing. Instances serve one `halfframe.enabled` block.
    """

    name: str = "full"

    def __str__(self) -> str:
        """The strategy with its options, as reports show it."""
        return self.name

    def allocate(self, allocation: Allocation) -> Tensor:
        """The latents to start from, of `allocation.shape`; by default, what the host would have drawn."""
        return allocation.draw(allocation.shape)

    def move(self, step: Step) -> Move:
        """What is done at `step`; asked once for every step, before the first of them; None computes every frame."""
        return None

    def at_switch(self, latents: Tensor) -> Tensor:
        """What becomes of full-length latents ``(..., F, H, W)`` at the expert switch; by default, nothing.

        Called with the latents, and with every tensor of the scheduler's history if it turns out to be linear in them.
        """
        return latents
