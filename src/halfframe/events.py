"""What hooks are handed: an expert call that was made, and the expert switch while it happens."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from halfframe.errors import PluginError
from halfframe.strategies.base import Step

__all__ = ["Boundary", "ExpertCall"]


@dataclass(frozen=True, slots=True)
class ExpertCall:
    """One forward of an expert, after it was made.

    Attributes:
        step: the step it belongs to.
        forward: its number within the step, from 0; with guidance upstream calls conditional, then unconditional.
        kept: positions of the latent frames that were computed, or what the strategy named for its means of frames (see
            `halfframe.Mixture`); None if all frames were computed.
        latents: what the expert was given, ``(..., len(kept), H, W)``.
        prediction: what it returned for those frames, before the skipped ones were filled in.
        sequence_length: its padded token count.
        seconds: measured time of the forward; None unless measuring was asked for.
    """

    step: Step
    forward: int
    kept: tuple[int, ...] | None
    latents: Tensor
    prediction: Tensor
    sequence_length: int
    seconds: float | None


class Boundary:
    """The expert switch, seen from between the two experts.

    Attributes:
        step: the first low-noise step; None where the schedule ended without one.
        sigma: noise level 0..1 of the latents here.
        kept: positions of the frames that the high-noise expert computed last.
        before: the carried latents before the switch, ``(..., F, H, W)``; skipped frames are the strategy's filling.
        sequence_length_before: padded token count of the high-noise expert's last call.
        sequence_length_after: padded token count of the full clip.
    """

    def __init__(
        self,
        *,
        step: Step | None,
        sigma: float,
        kept: tuple[int, ...],
        before: Tensor,
        sequence_length_before: int,
        sequence_length_after: int,
        expanded: Tensor,
    ) -> None:
        self.step = step
        self.sigma = sigma
        self.kept = kept
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
