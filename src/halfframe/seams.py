"""What passes between a host and a run: the user's settings, the host's facts, a source of noise, an expert call."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from halfframe import frames
from halfframe.cost import ExpertShape
from halfframe.guidance import GuidanceTruncation
from halfframe.strategies.base import Noise, Step
from halfframe.strategies.mixture import Mixture

__all__ = ["Call", "HostFacts", "NoiseSource", "Settings"]


@dataclass(frozen=True, slots=True)
class Settings:
    """What the user asked for, beside the strategy: see `halfframe.enabled`."""

    noise: Noise = "full"
    guidance: GuidanceTruncation = field(default_factory=GuidanceTruncation)
    measure: bool = False
    tflops: float | None = None
    preload: bool = False
    options: Mapping[str, Any] = field(default_factory=dict)
    guidance_by_preset: bool = False
    """Whether a preset brought the truncation: then it is no news that there is no guidance to truncate."""


@dataclass(frozen=True, slots=True)
class HostFacts:
    """What a host says of itself when a run starts.

    Attributes:
        name: the adapter's name.
        boundary: timestep 0..1000; the high-noise expert serves ``t >= boundary``.
        patch_size: ``(time, height, width)`` of a token, in latent pixels.
        temporal_stride: video frames per latent frame.
        group_size: what the token count is padded to a multiple of (sequence parallelism).
        expert_shape: the experts' sizes, for cost; None if unknown.
        pinned: positions of latent frames that are always computed, beside the strategy's choice; -1 is the last.
        conditioned: whether the experts are given conditions that go with the frames, as image-to-video's are.
    """

    name: str
    boundary: float
    patch_size: tuple[int, int, int] = (1, 2, 2)
    temporal_stride: int = 4
    group_size: int = 1
    expert_shape: ExpertShape | None = None
    pinned: tuple[int, ...] = ()
    conditioned: bool = False


class NoiseSource:
    """Where a run's noise comes from, able to draw the first noise again.

    Args:
        draw: draws noise of a given shape, as the host would.
        generators: the generators it draws from.
        dtype: of what it draws.
        device: of what it draws.
    """

    def __init__(
        self,
        draw: Callable[[tuple[int, ...]], Tensor],
        generators: Sequence[torch.Generator],
        dtype: torch.dtype,
        device: torch.device,
    ) -> None:
        self.draw = draw
        self.like = torch.empty(0, dtype=dtype, device=device)
        self._states = [(generator, generator.get_state()) for generator in generators]

    def replay(self, shape: tuple[int, ...]) -> Tensor:
        """Draw as if nothing had been drawn yet."""
        for generator, state in self._states:
            generator.set_state(state)
        return self.draw(shape)


@dataclass(slots=True)
class Call:
    """An expert call to be made: give the expert `inputs`, and hand its prediction to `SamplingRun.after_call`.

    Attributes:
        step: the step it belongs to.
        forward: its number within the step.
        latents: the full clip, ``(..., F, H, W)``.
        kept: positions of the frames to compute; None for all.
        positions: temporal positions that the expert must give these frames; None for its own, 0, 1, 2, ...
        inputs: those frames of `latents`, or the mixture of all.
        sequence_length: their padded token count.
        mixture: what the expert is given in place of single frames; None for these.
        started: when the forward began, seconds.
    """

    step: Step
    forward: int
    latents: Tensor
    kept: tuple[int, ...] | None
    inputs: Tensor
    sequence_length: int
    positions: tuple[float, ...] | None = None
    mixture: Mixture | None = None
    started: float = 0.0

    def cut(self, condition: Tensor) -> Tensor:
        """A condition that goes with the frames, ``(..., F, H, W)``, for the frames of this call."""
        if self.mixture is not None:
            return frames.mix(condition, self.mixture.weights)
        return condition if self.kept is None else frames.take(condition, self.kept)

    def timestep(self, given: Tensor) -> Tensor:
        """The timesteps 0..1000 to call the expert with, where the host gives it `given`."""
        if self.mixture is None:
            return given
        sigma = self.step.sigma
        return torch.full_like(given, self.step.timestep * self.mixture.sigma(sigma) / sigma, dtype=torch.float32)
