"""One run of a ComfyUI sampler: ComfyUI's predictions and model calls on one side, the core's run on the other."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from halfframe.errors import StrategyError, warn
from halfframe.hosts.comfyui.positions import placed_at
from halfframe.hosts.comfyui.refusals import refuse_call, refuse_guider, refuse_window
from halfframe.hosts.comfyui.steps import Table
from halfframe.sampling.frame_map import FrameMap
from halfframe.sampling.frames import TIME_DIM
from halfframe.sampling.guidance import GuidancePlan, GuidanceState, suffix_of
from halfframe.sampling.host import ForwardPass
from halfframe.sampling.run import SamplingRun
from halfframe.sampling.schedule import Schedule, planned_move
from halfframe.sampling.strategy import Move, Reuse, Step, frames_of, label_of
from halfframe.sampling.weights import remembering

__all__ = ["ComfyRun", "conditioning_frames"]


class ComfyRun:
    """A sampler's run.

    Args:
        run: the core's, which knows the strategy.
        schedule: steps of the run, and what is done at each.
        table: their sigmas.
        plan: which steps compute the unconditional pass.
        mirrors: whether the strategy needs skipped frames to mirror computed ones until the run ends.
    """

    def __init__(self, run: SamplingRun, schedule: Schedule, table: Table, plan: GuidancePlan, mirrors: bool) -> None:
        self.run = run
        self.schedule = schedule
        self.table = table
        self.mirrors = mirrors
        self._plan = plan
        self._guidance = GuidanceState(plan)
        self._moves: dict[tuple[int, float, int, tuple[int, ...]], tuple[Step, Move]] = {}
        self._met: set[int] = set()
        self._shown: list[tuple[int, Tensor]] = []
        self._warned = False

    @property
    def most_frames(self) -> int:
        """The most latent frames that a step computes."""
        pairs = zip(self.schedule.steps, self.schedule.moves, strict=True)
        return max(frames_of(move, step.num_frames) for step, move in pairs)

    @property
    def skips(self) -> bool:
        """Whether a step is to compute less than all frames."""
        return any(move is not None for move in self.schedule.moves)

    @property
    def truncates(self) -> bool:
        """Whether a step is to go without its unconditional pass."""
        return any(self._plan.at(step) != "both" for step in self.schedule.steps)

    def predict(
        self, executor: Callable[..., Tensor], guider: Any, x: Tensor, sigma: Tensor, options: dict[str, Any], seed: Any
    ) -> Tensor:
        """What the guided model says the clip `x` ``(B, C, F, H, W)`` shows, of the same shape.

        Args:
            executor: ComfyUI's own way to find out.
            guider: the sampler's guider.
            x: latents at noise level `sigma`.
            sigma: ``(B,)``, all the same.
            options: ComfyUI's model options for the call.
            seed: passed on.
        """
        index = self.table.index(_level(sigma))
        step, move = self.schedule.steps[index], self.schedule.moves[index]
        guided = _is_guided(guider)
        stood_in = ""
        if isinstance(move, Reuse):
            shown = self._reused(step, move)
            for _ in range(1 + guided):
                self.run.passes.skip(step, x)
        elif not isinstance(move, FrameMap | None):
            raise StrategyError(f"{type(move).__name__} is a move that ComfyUI's samplers do not know; use frame maps.")
        else:
            shown, stood_in = self._guided(executor, guider, step, guided, x, sigma, options, seed)
            if self.schedule.reuses:
                self._shown = remembering(self._shown, index, shown, self.schedule.reuses)
        level = _level(sigma)
        if self.run.shows and level > 0:
            self.run.show(replace(step, sigma=level, timestep=1000 * level), x, (x - shown) / level)
        if index not in self._met:
            self._met.add(index)
            self.run.meter.step(step.expert, frames_of(move, step.num_frames), label_of(move) + stood_in)
        return shown

    def call(
        self,
        executor: Callable[..., Tensor],
        model: Any,
        x: Tensor,
        t: Tensor,
        c_concat: Tensor | None,
        context: Any,
        control: Any,
        options: Mapping[str, Any],
        **more: Any,
    ) -> Tensor:
        """What the model says the clips `x` ``(B, C, F, H, W)`` show, of the same shape.

        Args:
            executor: makes ComfyUI's own call.
            model: ComfyUI's ``BaseModel``.
            x: latents; F is a context window's where there is one. Both passes of guidance may come in one batch.
            t: sigma, ``(B,)``, all the same.
            c_concat: image-to-video's mask and latents, ``(B, 20, F, H, W)``.
            context: text.
            control: of a ControlNet.
            options: ComfyUI's transformer options.
            **more: other conditions.
        """
        sigma = _level(t)
        step, move = self._at(
            sigma, x.shape[TIME_DIM], () if c_concat is None else conditioning_frames(c_concat[:, :4])
        )
        if move is not None:
            refuse_call(control, options, more)
            refuse_window(options.get("context_window"), x.shape[TIME_DIM], self.mirrors)
        shown = x

        def compute(made: ForwardPass) -> Tensor:
            nonlocal shown
            given = t if made.sigma == sigma else torch.full_like(t, made.sigma)
            concat = None if c_concat is None else made.cut(c_concat)
            with placed_at(model.diffusion_model, made.positions, options.get("rope_options") or {}):
                shown = executor(made.latents, given, concat, context, control, options, **more)
            return (made.latents - shown) / made.sigma

        number = 0 if 0 in options.get("cond_or_uncond", (0,)) else 1
        velocity = self.run.passes.make(step, move, number, x, compute)
        return shown if move is None else x - sigma * velocity

    def close(self) -> None:
        """Let go of every tensor."""
        self._shown = []
        self._guidance.close()
        self.run.close()

    def _at(self, sigma: float, count: int, conditioning: tuple[int, ...]) -> tuple[Step, Move]:
        """The step of a call at `sigma` for `count` frames, and what is done at it."""
        index = self.table.index(sigma)
        planned = self.schedule.steps[index]
        key = (index, sigma, count, conditioning)
        if key not in self._moves:
            own = {*conditioning, *(planned.conditioning_frames if count == planned.num_frames else ())}
            step = replace(
                planned,
                sigma=sigma,
                timestep=1000 * sigma,
                num_frames=count,
                conditioning_frames=tuple(sorted(own)),
            )
            self._moves[key] = (step, planned_move(step, self.run.strategy) if sigma > 0 else None)
        return self._moves[key]

    def _guided(
        self,
        executor: Callable[..., Tensor],
        guider: Any,
        step: Step,
        guided: bool,
        x: Tensor,
        sigma: Tensor,
        options: dict[str, Any],
        seed: Any,
    ) -> tuple[Tensor, str]:
        """A computed prediction, and what stood in for its unconditional pass."""
        rule = self._guidance.rule(step)
        if rule != "both":
            refuse_guider(guider, options, rule)
        if not guided:
            rule = "both"
        if rule != "both" and options.get("disable_cfg1_optimization"):
            self._warn_of_uncond()
            rule = "both"
        if rule == "both":
            return executor(x, sigma, self._watched(step, options) if guided and self._plan else options, seed), ""
        scale, guider.cfg = guider.cfg, 1.0
        try:
            shown = executor(x, sigma, options, seed)
        finally:
            guider.cfg = scale
        self.run.passes.skip(step, x)
        level = _level(sigma)
        positive = (x - shown) / level
        self._guidance.see(step, 0, positive)
        if rule == "conditional":
            return shown, suffix_of(rule)
        negative = self._guidance.stand_in(step, 1)
        assert negative is not None
        return x - level * (negative + scale * (positive - negative)), suffix_of(rule)

    def _watched(self, step: Step, options: dict[str, Any]) -> dict[str, Any]:
        """Options with which ComfyUI shows both predictions, from which the guidance difference comes."""

        def see(args: dict[str, Any]) -> Tensor:
            x, level = args["input"], _level(args["sigma"])
            for number, name in enumerate(("cond_denoised", "uncond_denoised")):
                self._guidance.see(step, number, (x - args[name]) / level)
            denoised: Tensor = args["denoised"]
            return denoised

        name = "sampler_post_cfg_function"
        return {**options, name: [see, *options.get(name, [])]}

    def _reused(self, step: Step, move: Reuse) -> Tensor:
        shown = move.shown(self._shown)
        if shown is None:
            raise StrategyError(
                f"step {step.index + 1} of {step.num_steps} reuses what {move.needs} steps before it computed, but its "
                f"sampler computed {len(self._shown)}; a sampler knows nothing of the one before it: let the first "
                f"{'step' if move.needs == 1 else f'{move.needs} steps'} of each model be computed."
            )
        return shown

    def _warn_of_uncond(self) -> None:
        if not self._warned:
            self._warned = True
            warn(
                "guidance is computed at every step, because the sampler or a node asks for the unconditional "
                "prediction always (a sampler whose name ends in cfg_pp does); choose another sampler, such as euler"
            )


def conditioning_frames(known: Tensor) -> tuple[int, ...]:
    """Positions of frames with an image of their own, from a mask ``(B, 4, F, H, W)`` that is not zero there."""
    has = (known != 0).movedim(TIME_DIM, 0).flatten(1).any(1)
    return tuple(position for position, one in enumerate(has.tolist()) if one)


def _level(sigma: Tensor) -> float:
    return float(sigma.flatten()[0])


def _is_guided(guider: Any) -> bool:
    """Whether the guider makes an unconditional pass: ComfyUI leaves it out itself where the scale is 1."""
    conditions = getattr(guider, "conds", {})
    return conditions.get("negative") is not None and abs(float(getattr(guider, "cfg", 1.0)) - 1.0) > 1e-9
