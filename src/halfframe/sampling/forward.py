"""The forward-pass part of a run: one expert call, reduced in time and expanded again. It knows no loop.

A call brings its own step, and with it sigma and the number of frames; hosts without a pipeline object use this part
alone. What is remembered between steps is what a `Reuse` needs.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Hashable, Sequence
from typing import Any

import pluggy
from torch import Tensor

from halfframe.errors import HalfframeError, PluginError, StrategyError
from halfframe.report.meter import Meter, clock
from halfframe.sampling import frames
from halfframe.sampling.events import ExpertCall
from halfframe.sampling.frame_map import BoundMap, FrameMap
from halfframe.sampling.host import ForwardPass, HostFacts
from halfframe.sampling.strategy import Given, Move, Reuse, Step
from halfframe.sampling.weights import remembering

__all__ = ["Compute", "ForwardPasses", "checked", "finite", "only_looked_at"]

Compute = Callable[[ForwardPass], Tensor]
"""Makes a forward pass: the velocity ``v = eps - x0`` of the frames that the expert was given, ``(..., K, H, W)``."""


class ForwardPasses:
    """Makes the forward passes of one run.

    Args:
        facts: of the host.
        named: who decides what is computed, for messages.
        hooks: see each pass.
        meter: counts each pass.
        measure: whether passes are timed, synchronising the device.
        remembers: how many earlier predictions a step may reuse at most.
    """

    def __init__(
        self,
        facts: HostFacts,
        named: str,
        hooks: pluggy.HookRelay,
        meter: Meter,
        measure: bool = False,
        remembers: int = 0,
    ) -> None:
        self.facts = facts
        self.remembers = remembers
        self._named = named
        self._hooks = hooks
        self._meter = meter
        self._measure = measure
        self._bound: tuple[Step, BoundMap] | None = None
        self._shown: dict[Hashable, list[tuple[int, Tensor]]] = {}
        self.latest: ForwardPass | None = None

    def make(self, step: Step, move: Move, number: int, latents: Tensor, compute: Compute, key: Any = None) -> Tensor:
        """One forward pass at `step`: the velocity of all frames of `latents` ``(..., F, H, W)``, same shape.

        Args:
            step: the step; its ``num_frames`` is F.
            move: what is done there.
            number: of the pass within the step: with guidance, 0 is the conditional one, 1 the other.
            latents: what the expert would be called with.
            compute: makes the pass, if one is made.
            key: tells apart passes of one step whose predictions are not each other's; by default, `number`.

        Raises:
            StrategyError: a prediction is to be reused and there is none.
            HalfframeError: the expert's prediction has not the shape of what it was given.
        """
        key = number if key is None else key
        if isinstance(move, FrameMap | None):
            velocity = self._computed(step, move, number, latents, compute)
        else:
            velocity = self._standing_in(step, move, key, latents)
            self.skip(step, latents)
        if not isinstance(move, Reuse):
            self.see(step, key, latents, velocity)
        return velocity

    def see(self, step: Step, key: Hashable, latents: Tensor, velocity: Tensor) -> None:
        """Remember what `velocity` says the clip shows, if that may be reused."""
        if self.remembers:
            shown = latents.float() - step.sigma * velocity.float()
            self._shown[key] = remembering(self._shown.get(key, []), step.index, shown, self.remembers)

    def skip(self, step: Step, latents: Tensor) -> None:
        """A pass over `latents` was left out."""
        self._meter.skip(step.expert, self.sequence_length(latents, step.num_frames), _clips(latents))

    def sequence_length(self, latents: Tensor, count: int) -> int:
        """Tokens of `count` frames of the size of those of `latents`."""
        height, width = latents.shape[-2:]
        tokens = (height // self.facts.patch_size[1]) * (width // self.facts.patch_size[2])
        return frames.sequence_length(count, tokens, self.facts.group_size)

    def close(self) -> None:
        """Let go of every tensor."""
        self._shown.clear()
        self.latest = self._bound = None

    def _standing_in(self, step: Step, move: Reuse | Given, key: Hashable, latents: Tensor) -> Tensor:
        if isinstance(move, Given):
            if not isinstance(key, int) or key >= len(move.velocities):
                raise StrategyError(f"{self._named} gives no velocity for forward pass {key} of step {step.index + 1}.")
            velocity = move.velocities[key].to(latents.device)
            return checked(velocity, latents.shape, None, f"the velocity that {self._named} gives")
        known = [one for one in self._shown.get(key, []) if one[1].shape == latents.shape]
        shown = move.shown(known)
        if shown is None:
            raise StrategyError(
                f"{self._named} reuses {_counted(move.needs)} at step {step.index + 1} of {step.num_steps}, but "
                f"forward pass {key} of earlier steps computed {len(known)} for latents of shape "
                f"{tuple(latents.shape)}; let the first steps be computed, and guide all steps or none."
            )
        return ((latents.float() - shown) / step.sigma).to(latents.dtype)

    def _computed(
        self, step: Step, frame_map: FrameMap | None, number: int, latents: Tensor, compute: Compute
    ) -> Tensor:
        bound = None if frame_map is None else self._bound_at(step, frame_map)
        inputs = latents if bound is None else bound.reduce(latents)
        count = inputs.shape[frames.TIME_DIM]
        made = self.latest = ForwardPass(step, bound, inputs, self.sequence_length(inputs, count))
        started = clock(latents.device, self._measure)
        prediction = compute(made)
        seconds = clock(prediction.device, self._measure) - started
        shape = (*prediction.shape[: frames.TIME_DIM], *inputs.shape[frames.TIME_DIM :])
        checked(prediction, shape, None, f"the prediction of the {step.expert}-noise expert", HalfframeError)
        velocity = prediction if bound is None else bound.expand(prediction, latents)
        full_length = made.sequence_length if bound is None else self.sequence_length(latents, step.num_frames)
        self._meter.forward(step.expert, count, made.sequence_length, full_length, _clips(latents), seconds)
        only_looked_at(
            self._hooks.halfframe_expert_call,
            (inputs, prediction),
            call=ExpertCall(
                step=step,
                number=number,
                frame_map=frame_map,
                latents=inputs,
                prediction=prediction,
                sequence_length=made.sequence_length,
                seconds=seconds if self._measure else None,
            ),
        )
        return velocity

    def _bound_at(self, step: Step, frame_map: FrameMap) -> BoundMap:
        """The map of the step, made once."""
        known = self._bound
        if known is None or known[0] is not step or known[1].frame_map is not frame_map:
            known = self._bound = (step, BoundMap(frame_map, step.sigma))
        return known[1]


def only_looked_at(hook: pluggy.HookCaller, tensors: Sequence[Tensor], **arguments: Any) -> None:
    """Call `hook` with `arguments`, which hold the run's own `tensors`.

    Raises:
        PluginError: a plugin edited one of them in place.
    """
    before = _versions(tensors)
    hook(**arguments)
    if _versions(tensors) != before:
        names = " or ".join(sorted(one.plugin_name for one in hook.get_hookimpls()))
        raise PluginError(
            f"a {hook.name} hook edited a tensor in place, in {names}; these are the run's own, and only "
            "to be looked at. Edit a clone."
        )


def _counted(needs: int) -> str:
    return "a prediction" if needs == 1 else f"{needs} predictions"


def checked(
    value: Any, shape: Sequence[int], like: Tensor | None, what: str, error: type[HalfframeError] = StrategyError
) -> Tensor:
    """`value`, if it is a tensor of `shape` and, if given, of the dtype and device of `like`."""
    if not isinstance(value, Tensor):
        raise error(f"{what} is {type(value).__name__}; needed: a tensor of shape {tuple(shape)}.")
    if tuple(value.shape) != tuple(shape):
        raise error(f"{what} has shape {tuple(value.shape)}; needed: {tuple(shape)}, time at dim -3.")
    if like is not None and (value.dtype != like.dtype or value.device != like.device):
        raise error(
            f"{what} is {value.dtype} on {value.device}; needed: {like.dtype} on {like.device}, as the host has it."
        )
    return value


def finite(latents: Tensor, what: str) -> Tensor:
    """`latents`, if all their values are finite."""
    if not latents.isfinite().all():
        raise StrategyError(f"{what} has values that are NaN or infinite; needed: finite latents.")
    return latents


def _clips(latents: Tensor) -> int:
    return math.prod(latents.shape[: frames.TIME_DIM - 1])


def _versions(tensors: Sequence[Tensor]) -> list[int]:
    """How often each was edited in place; tensors of inference mode do not count that."""
    return [0 if tensor.is_inference() else tensor._version for tensor in tensors]
