"""What hooks are handed: an expert call that was made, and the expert switch while it happens."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from halfframe.errors import PluginError
from halfframe.sampling.frame_map import FrameMap
from halfframe.sampling.strategy import Step

__all__ = ["Boundary", "ExpertCall"]


@dataclass(frozen=True, slots=True)
class ExpertCall:
    """One forward pass of an expert, after it was made.

    Attributes:
        step: the step it belongs to.
        number: its number within the step, from 0; with guidance hosts call conditional, then unconditional.
        frame_map: which frames, or means of frames, the expert was given; None for all frames.
        latents: what the expert was given, ``(..., K, H, W)``.
        prediction: the velocity it returned for those, before it was expanded to all frames, ``(..., K, H, W)``.
        sequence_length: its padded token count.
        seconds: measured time of the pass; None unless measuring was asked for.
    """

    step: Step
    number: int
    frame_map: FrameMap | None
    latents: Tensor
    prediction: Tensor
    sequence_length: int
    seconds: float | None


class Boundary:
    """The expert switch, seen from between the two experts.

    Attributes:
        step: the first low-noise step; None where the schedule ended without one.
        sigma: noise level 0..1 of the latents here.
        frame_map: which frames the high-noise expert computed last; None for all.
        before: the carried latents before the switch, ``(..., F, H, W)``; skipped frames as the strategy carried them.
        sequence_length_before: padded token count of the high-noise expert's last call.
        sequence_length_after: padded token count of the full clip.
    """

    def __init__(
        self,
        *,
        step: Step | None,
        sigma: float,
        frame_map: FrameMap | None,
        before: Tensor,
        sequence_length_before: int,
        sequence_length_after: int,
        expanded: Tensor,
    ) -> None:
        self.step = step
        self.sigma = sigma
        self.frame_map = frame_map
        self.before = before
        self.sequence_length_before = sequence_length_before
        self.sequence_length_after = sequence_length_after
        self.rewritten = False
        self._latents = expanded

    @property
    def latents(self) -> Tensor:
        """The full clip ``(..., F, H, W)`` that the low-noise expert will get; assign to replace it.

        Raises:
            PluginError: on assignment of another shape, dtype or device.
        """
        return self._latents

    @latents.setter
    def latents(self, value: Tensor) -> None:
        like = self.before
        if not isinstance(value, Tensor) or (value.shape, value.dtype, value.device) != (
            like.shape,
            like.dtype,
            like.device,
        ):
            seen = (
                f"{tuple(value.shape)}, {value.dtype} on {value.device}" if isinstance(value, Tensor) else repr(value)
            )
            raise PluginError(
                f"a halfframe_boundary hook assigned latents {seen}; needed: {tuple(like.shape)}, {like.dtype} on "
                f"{like.device}. The traceback names the plugin."
            )
        self._latents = value
        self.rewritten = True
