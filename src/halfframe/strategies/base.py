"""What a strategy is: questions about the time axis, asked by the run and answered without knowing the host.

The run always carries latents of full length, so that callbacks, interrupts and solvers never meet another shape;
a strategy that thinks in half-length clips (the source's two, and any plain function) is an `Expansion`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal, Protocol

import torch
from torch import Tensor

from halfframe import frames
from halfframe.errors import OptionError
from halfframe.strategies.mixture import Mixture

__all__ = ["Allocation", "ExpandFunction", "Expansion", "Expert", "Noise", "Step", "Strategy"]

Expert = Literal["high", "low"]
Noise = Literal["full", "short"]
NOISE_MODES: tuple[Noise, ...] = ("full", "short")


class ExpandFunction(Protocol):
    """The simplest strategy: ``(latents, num_frames) -> latents``, and keyword options if it has any.

    `latents` is ``(..., ceil(num_frames / 2), H, W)``; the result ``(..., num_frames, H, W)``, same dtype and device.
    """

    def __call__(self, latents: Tensor, num_frames: int, /) -> Tensor: ...


@dataclass(frozen=True, slots=True)
class Step:
    """One step of the schedule, before the expert runs.

    Attributes:
        index: position in the schedule, from 0.
        num_steps: length of the schedule.
        timestep: 0..1000, as the expert is given it.
        sigma: noise level 0..1, ``x = (1 - sigma) x0 + sigma eps``, from the solver's own table.
        expert: which expert runs, ``"high"`` or ``"low"``.
        expert_index: position among this expert's steps, from 0.
        expert_steps: how many steps this expert has.
        num_frames: latent frames of the full clip.
        boundary: timestep 0..1000 from which on the high-noise expert serves.
        conditioned: whether the expert is given conditions that go with the frames, as image-to-video's are.
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


@dataclass(frozen=True, slots=True)
class Allocation:
    """The host is about to draw the noise that the run starts from.

    Attributes:
        shape: of the latents that must come out, ``(C, F, H, W)`` or ``(B, C, F, H, W)``.
        noise: ``"full"`` or ``"short"``, what the user asked for.
        dtype: of the latents that must come out.
        device: of the latents that must come out.
        draw: draws standard normal noise of a given shape from the user's generator, on the host's device and in the
            host's dtype. The same shape as `shape` gives exactly what the host would have drawn.
        pinned: positions of frames that the host has computed at every step, beside the strategy's choice.
    """

    shape: tuple[int, ...]
    noise: Noise
    dtype: torch.dtype
    device: torch.device
    draw: Callable[[tuple[int, ...]], Tensor]
    pinned: tuple[int, ...] = ()

    @property
    def num_frames(self) -> int:
        """Latent frames of the full clip."""
        return self.shape[frames.TIME_DIM]


class Strategy:
    """Base class: which frames the experts compute, and how the others are had. Override what differs.

    As it stands it computes every frame, changes nothing, and accepts no options. Instances serve one
    `halfframe.enabled` block and may keep state between the calls of a run; `begin` starts a run.
    """

    name: str = "full"
    sees_pinned: bool = False
    """Whether `fill` is given frames that the host has computed beside the strategy's choice (`Allocation.pinned`)."""

    @property
    def halves(self) -> bool:
        """Whether leaving no frame out is worth a warning: true for everything but this base class itself."""
        return type(self) is not Strategy

    def begin(self, num_frames: int) -> None:
        """A run over `num_frames` latent frames starts."""

    def allocate(self, allocation: Allocation) -> Tensor:
        """The latents to start from, of `allocation.shape`; by default, what the host would have drawn."""
        _refuse_noise(self.name, allocation.noise)
        return allocation.draw(allocation.shape)

    def check_noise(self, noise: Noise) -> None:
        """Raise `OptionError` if `allocate` is the base's, which draws full noise only: asked before a run starts."""
        if type(self).allocate is Strategy.allocate:
            _refuse_noise(self.name, noise)

    def select(self, step: Step) -> Sequence[int] | None:
        """Positions of the latent frames that the expert computes at `step`, increasing; None for all of them."""
        return None

    def mixture(self, step: Step) -> Mixture | None:
        """What the expert is given at `step` in place of the frames that `select` names; None for those frames.

        It has as many rows as `select` names frames, and brings its own positions. Frames that the host wants computed
        as they are (`Allocation.pinned`) cannot be had together with it.
        """
        return None

    def true_positions(self, step: Step) -> bool:
        """Whether kept frames have the temporal positions (RoPE) that they have in the full clip; else 0, 1, 2, ...

        By default they are numbered from 0, so that the expert takes them for a shorter clip, as in the source.
        """
        return False

    def fill(self, prediction: Tensor, kept: Sequence[int], step: Step, forward: int, latents: Tensor) -> Tensor:
        """Complete the expert's prediction; asked after every forward, also where every frame was computed.

        Args:
            prediction: velocity ``v = eps - x0`` on the kept frames, or on the `mixture`, ``(..., len(kept), H, W)``.
            kept: what `select` returned for this step, and with `sees_pinned` the pinned frames; every position where
                `select` returned None.
            step: the step.
            forward: number of the forward within the step: with guidance, 0 is the conditional one, 1 the other.
            latents: the full clip that the prediction belongs to, ``(..., F, H, W)``.

        Returns:
            The velocity of all frames, ``(..., F, H, W)``.
        """
        return prediction if len(kept) == step.num_frames else frames.hold(prediction, kept, step.num_frames)

    def switch(self, latents: Tensor) -> Tensor:
        """What becomes of full-length latents ``(..., F, H, W)`` at the expert switch; by default, nothing.

        Called with the latents, and with every tensor of the solver's history if it turns out to be linear in them.
        """
        return latents


class Expansion(Strategy):
    """The source's scheme: the high-noise expert sees every other frame, a function brings back the rest.

    Args:
        name: the strategy's name, for reports and messages.
        expand: ``(latents, num_frames) -> latents``, see `ExpandFunction`.
    """

    def __init__(self, name: str, expand: ExpandFunction) -> None:
        self.name = name
        self._expand = expand

    def allocate(self, allocation: Allocation) -> Tensor:
        """Kept frames get the full draw's noise, or with ``noise="short"`` a draw of their own (the source's way).

        Skipped frames mirror the kept frame before them; they stay a mirror until the switch.
        """
        num_frames = allocation.num_frames
        kept = frames.kept_indices(num_frames)
        if allocation.noise == "short":
            shape = list(allocation.shape)
            shape[frames.TIME_DIM] = len(kept)
            return frames.hold(allocation.draw(tuple(shape)), kept, num_frames)
        noise = allocation.draw(allocation.shape)
        carried = frames.hold(frames.take(noise, kept), kept, num_frames)
        pinned = allocation.pinned
        return frames.put(carried, pinned, frames.take(noise, pinned)) if pinned else carried

    def select(self, step: Step) -> Sequence[int] | None:
        """Every other frame for the high-noise expert, all for the other."""
        return frames.kept_indices(step.num_frames) if step.expert == "high" else None

    def switch(self, latents: Tensor) -> Tensor:
        """``expand(kept frames, F)``."""
        num_frames = latents.shape[frames.TIME_DIM]
        return self._expand(frames.take(latents, frames.kept_indices(num_frames)), num_frames)


def _refuse_noise(name: str, noise: Noise) -> None:
    if noise != "full":
        raise OptionError(
            f"strategy {name!r} carries latents of full length, so noise={noise!r} has no meaning for it; leave out "
            "`noise`, or name a strategy that has it, such as 'self-duplicate'."
        )
