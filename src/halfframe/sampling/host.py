"""What a host brings to a run: facts about its experts, a source of noise, and forward passes to be made."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from halfframe.report.cost import ExpertShape
from halfframe.sampling.frame_map import BoundMap
from halfframe.sampling.strategy import Step

__all__ = ["ForwardPass", "HostFacts", "NoiseSource"]


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
        conditioning_frames: positions of latent frames that are always computed; -1 is the last.
        conditioned: whether the experts are given conditions that go with the frames, as image-to-video's are.
        never_high: what to say and do about a run without a high-noise step; empty where the boundary tells.
    """

    name: str
    boundary: float
    patch_size: tuple[int, int, int] = (1, 2, 2)
    temporal_stride: int = 4
    group_size: int = 1
    expert_shape: ExpertShape | None = None
    conditioning_frames: tuple[int, ...] = ()
    conditioned: bool = False
    never_high: str = ""

    def conditioning(self, num_frames: int) -> tuple[int, ...]:
        """`conditioning_frames` as positions from 0 in a clip of `num_frames` latent frames."""
        return tuple(sorted({position % num_frames for position in self.conditioning_frames}))


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


@dataclass(frozen=True, slots=True)
class ForwardPass:
    """A forward pass that the host is to make: give the expert `latents`, return its velocity for these frames.

    Attributes:
        step: the step it belongs to.
        bound: how the frames were reduced; None where all are computed.
        latents: what the expert is given, ``(..., K, H, W)``.
        sequence_length: their padded token count.
    """

    step: Step
    bound: BoundMap | None
    latents: Tensor
    sequence_length: int

    @property
    def positions(self) -> tuple[float, ...] | None:
        """Temporal positions (RoPE) that the expert must give the frames; None for 0, 1, 2, ..."""
        return None if self.bound is None else self.bound.positions

    @property
    def sigma(self) -> float:
        """Noise level 0..1 of what the expert is given."""
        return self.step.sigma if self.bound is None else self.bound.given_sigma

    def cut(self, condition: Tensor) -> Tensor:
        """The part for these frames of a condition that goes with the frames, ``(..., F, H, W)``."""
        return condition if self.bound is None else self.bound.cut(condition)

    def timestep(self, given: Tensor) -> Tensor:
        """The timesteps 0..1000 to call the expert with, where the host has `given`."""
        sigma = self.step.sigma
        if self.sigma == sigma:
            return given
        return torch.full_like(given, self.step.timestep * self.sigma / sigma, dtype=torch.float32)
