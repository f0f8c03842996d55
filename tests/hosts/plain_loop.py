"""Every built-in strategy as a plain sampling loop on a host's own parts: its experts, its scheduler, its conditions.

Nothing of halfframe is used, so that it can contradict it. What a strategy does is written down once more, from its
description: which frames an expert is given and at which places in time, at which noise level they are, and what the
other frames are taken to show. Rotary embeddings are computed from their formula. One loop serves both hosts.

Times are dim 2 throughout, ``(B, C, F, H, W)``.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any
from unittest import mock

import numpy as np
import torch
from torch import Tensor

from .reference import NEGATIVE, duplicate, frames_at, solver_of

Predict = Callable[[bool, Tensor, "Tensor | None", Tensor, "Sequence[float] | None", bool], Tensor]


@dataclass
class Parts:
    """What a sampling loop needs of a pipeline.

    Attributes:
        predict: ``(high, latents, condition, timestep, places or None for 0, 1, 2, ..., conditional) -> velocity``.
        scheduler: fresh, with its timesteps set.
        boundary: timestep 0..1000 from which on the high-noise expert serves.
        noise: draws what a run starts from, ``(B, 16, frames, h, w)``, of so many latent frames.
        frames: latent frames of the clip.
        scales: of guidance, for the high-noise expert and the low-noise one.
        condition: image-to-video's channels, ``(B, 20, F, h, w)``.
        last_image: whether the last frame has an image of its own.
    """

    predict: Predict
    scheduler: Any
    boundary: float
    noise: Callable[[int], Tensor]
    frames: int
    scales: tuple[float, float]
    condition: Tensor | None = None
    last_image: bool = False

    @property
    def high_steps(self) -> int:
        return sum(bool(t >= self.boundary) for t in self.scheduler.timesteps)  # as the hosts round it

    def guided(
        self, high: bool, latents: Tensor, condition: Tensor | None, t: Tensor, places: Sequence[float] | None
    ) -> Tensor:
        scale = self.scales[0 if high else 1]
        positive = self.predict(high, latents, condition, t, places, True)
        if scale == 1:
            return positive
        negative = self.predict(high, latents, condition, t, places, False)
        return negative + scale * (positive - negative)


@dataclass
class View:
    """What an expert is given of a clip: weighted sums of its frames, and where in time it is told that they are."""

    weights: list[list[float]]
    told: list[float] | None

    @property
    def places(self) -> list[float]:
        return [sum(w * p for p, w in enumerate(row)) for row in self.weights]

    @property
    def noise(self) -> float:
        return math.sqrt(sum(w * w for w in self.weights[0]))

    def of(self, clip: Tensor) -> Tensor:
        return torch.stack([sum(w * clip[:, :, p] for p, w in enumerate(row) if w) for row in self.weights], dim=2)  # type: ignore[misc]


def plain_loop(parts: Parts, strategy: str, **options: Any) -> Tensor:
    """Final latents ``(B, 16, F, h, w)`` of a run with a built-in `strategy`."""
    with torch.no_grad():
        if strategy in ("self-duplicate", "previous-odd"):
            return short_clip(parts, **options)
        return whole_clip(parts, strategy, **options)


def short_clip(
    parts: Parts,
    *,
    noise: str = "full",
    expand: Callable[[Tensor, int], Tensor] = duplicate,
    at_switch: Callable[[Tensor], Tensor] | None = None,
) -> Tensor:
    """The source's scheme: a clip of every other frame is carried, and the whole one from the switch on.

    A last frame with an image of its own is carried beside them, and not made up at the switch. With `at_switch` the
    whole clip is edited there, and the scheduler forgets what was before.
    """
    total, scheduler = parts.frames, parts.scheduler
    kept = list(range(0, total, 2))
    own_last = parts.last_image and total - 1 not in kept
    if noise == "short":
        latents = parts.noise(len(kept))
        carried = [*latents.unbind(2), *([latents[:, :, -1]] if own_last else [])]
        latents = torch.stack(carried, dim=2)
    else:
        latents = parts.noise(total)[:, :, [*kept, *([total - 1] if own_last else [])]]
    condition = parts.condition
    if condition is not None:
        condition = condition[:, :, [*kept, *([total - 1] if own_last else [])]]

    def whole(clip: Tensor) -> Tensor:
        full = expand(clip[:, :, : len(kept)], total).clone()
        if own_last:
            full[:, :, -1] = clip[:, :, -1]
        return full

    halved = latents.shape[2] < total and parts.high_steps > 0
    for t in scheduler.timesteps:
        high = bool(t >= parts.boundary)
        if halved and not high:
            halved, latents, condition = False, whole(latents), parts.condition
            change_history(scheduler, whole)
            if at_switch is not None:
                latents = at_switch(latents)
                change_history(scheduler, None)
        velocity = parts.guided(high, latents, condition, t, None)
        latents = scheduler.step(velocity, t, latents, return_dict=False)[0]
    return whole(latents) if halved else latents


def whole_clip(parts: Parts, strategy: str, **options: Any) -> Tensor:
    """The whole clip is carried; frames that were not computed show what lies between those that were."""
    scheduler, total = parts.scheduler, parts.frames
    latents = parts.noise(total)
    for i, t in enumerate(scheduler.timesteps):
        high = bool(t >= parts.boundary)
        sigma = float(scheduler.sigmas[i])
        view = view_at(parts, strategy, i, sigma, **options)
        if view is None:
            velocity = parts.guided(high, latents, parts.condition, t, None)
        else:
            # (sum of w x) = (1 - sigma) (sum of w x0) + sigma n eps, up to a factor a frame at a lower noise level.
            factor = 1 - sigma + sigma * view.noise
            level = sigma * view.noise / factor
            given = view.of(latents) / factor
            condition = None if parts.condition is None else view.of(parts.condition)
            moment = t if view.noise == 1 else t * (level / sigma)
            computed = parts.guided(high, given, condition, moment, view.told)
            shown = held if strategy == "own-noise" else straight
            velocity = (latents - shown(given - level * computed, view.places, total)) / sigma
        latents = scheduler.step(velocity, t, latents, return_dict=False)[0]
    return latents


def view_at(
    parts: Parts,
    strategy: str,
    index: int,
    sigma: float,
    *,
    stride: int = 2,
    full_start: int = 0,
    full_end: int = 0,
    until: str | int = "switch",
    positions: str = "true",
) -> View | None:
    """What an expert is given at a step; None for every frame as it is."""
    total, high_steps = parts.frames, parts.high_steps
    last = {"switch": high_steps, "end": len(parts.scheduler.timesteps)}.get(until, until)  # type: ignore[call-overload]
    if until != "end":
        last = min(last, high_steps)
    if not full_start <= index < last - full_end or stride == 1 or sigma == 0 or total == 1:
        return None
    turn = 0 if strategy in ("own-noise", "interpolate") else (index - full_start) % stride
    if strategy != "merge" or parts.condition is not None:
        kept = sorted({0, *range(turn, total, stride), *([total - 1] if parts.last_image else [])})
        weights = [[float(p == k) for p in range(total)] for k in kept]
    else:
        size = min(stride, total)
        starts = sorted({0, *range(turn, total - size + 1, stride), total - size})
        first = weight_of_the_first(size, sigma, parts.boundary / 1000 if index < high_steps else 0.0)
        rest = (1 - first) / (size - 1)
        weights = [[first if p == s else rest if s < p < s + size else 0.0 for p in range(total)] for s in starts]
    if len(weights) == total:
        return None
    view = View(weights, None)
    if positions == "true":
        view.told = view.places
    return view


def weight_of_the_first(size: int, sigma: float, boundary: float) -> float:
    """An even share; more of it, found by halving, where the mean's noise level would be under `boundary`."""

    def level(first: float) -> float:
        noise = sigma * math.sqrt(first**2 + (1 - first) ** 2 / (size - 1))
        return noise / (1 - sigma + noise)

    low, top = 1 / size, 1.0
    if level(low) >= boundary:
        return low
    for _ in range(60):
        middle = (low + top) / 2
        low, top = (middle, top) if level(middle) < boundary else (low, middle)
    return top


def held(clip: Tensor, places: list[float], total: int) -> Tensor:
    """Every frame shows what the last one at or before it does."""
    return torch.stack([clip[:, :, max(i for i, k in enumerate(places) if k <= p)] for p in range(total)], dim=2)


def straight(clip: Tensor, places: list[float], total: int) -> Tensor:
    """Every frame shows what lies on the line between its neighbours; beyond the outermost, what these do."""
    lines = clip.movedim(2, -1).double().numpy()
    full = [np.interp(range(total), places, line) for line in lines.reshape(-1, len(places))]
    return torch.tensor(np.array(full)).to(clip.dtype).reshape(*lines.shape[:-1], total).movedim(-1, 2)


def change_history(scheduler: Any, function: Callable[[Tensor], Tensor] | None) -> None:
    """Pass what a scheduler remembers through `function`, by its attributes' names; None: have it forget."""
    if hasattr(scheduler, "model_outputs"):
        scheduler.model_outputs = [m if m is None or function is None else function(m) for m in scheduler.model_outputs]
        if function is None:
            scheduler.model_outputs = [None] * len(scheduler.model_outputs)
            scheduler.lower_order_nums = 0
    for name in ("last_sample", "prev_derivative", "sample"):
        value = getattr(scheduler, name, None)
        if value is not None:
            setattr(scheduler, name, None if function is None else function(value))


# The hosts' parts.


def official_parts(
    pipe: Any,
    module: Any,
    prompt: str,
    *,
    frame_num: int,
    sampling_steps: int,
    shift: float,
    seed: int,
    sample_solver: str = "unipc",
    guide_scale: tuple[float, float] = (5.0, 5.0),
    condition: Tensor | None = None,
) -> Parts:
    """Of an official pipeline that makes a clip of 48 x 32; `guide_scale` is low, then high, as `generate` has it."""
    texts = [pipe.text_encoder([text], pipe.device) for text in (prompt, NEGATIVE)]
    scheduler, _ = solver_of(module, sample_solver, sampling_steps, shift)

    def predict(
        high: bool,
        latents: Tensor,
        condition: Tensor | None,
        t: Tensor,
        places: Sequence[float] | None,
        conditional: bool,
    ) -> Tensor:
        model = pipe.high_noise_model if high else pipe.low_noise_model
        extra = {} if condition is None else {"y": list(condition)}
        with contextlib.nullcontext() if places is None else frames_at(list(places)):
            velocity: Tensor = model(
                list(latents),
                t=torch.stack([t]),
                context=texts[0 if conditional else 1],
                seq_len=latents.shape[2] * 6,
                **extra,
            )[0]
        return velocity[None]

    return Parts(
        predict=predict,
        scheduler=scheduler,
        boundary=pipe.boundary * 1000,
        noise=lambda frames: torch.randn(16, frames, 4, 6, generator=torch.Generator().manual_seed(seed))[None],
        frames=(frame_num - 1) // 4 + 1,
        scales=(guide_scale[1], guide_scale[0]),
        condition=None if condition is None else condition[None],
    )


def diffusers_parts(
    pipe: Any,
    prompts: Sequence[str],
    *,
    num_frames: int,
    steps: int,
    scales: tuple[float, float] = (5.0, 5.0),
    image: Any = None,
    last_image: Any = None,
    seed: int = 7,
) -> Parts:
    """Of a diffusers pipeline that makes clips of 48 x 32; `scales` are of the high-noise expert, then of the other."""
    dtype = pipe.transformer.dtype
    texts = [
        text.to(dtype)
        for text in pipe.encode_prompt(
            list(prompts), [NEGATIVE] * len(prompts), max_sequence_length=8, device=torch.device("cpu")
        )
    ]
    scheduler = type(pipe.scheduler).from_config(pipe.scheduler.config)
    scheduler.set_timesteps(steps, device="cpu")
    frames = (num_frames - 1) // 4 + 1
    condition = None
    if image is not None:
        pictures = [
            None if one is None else pipe.video_processor.preprocess(one, height=32, width=48).float()
            for one in (image, last_image)
        ]
        _, condition = pipe.prepare_latents(
            pictures[0], len(prompts), 16, 32, 48, num_frames, torch.float32, torch.device("cpu"),
            last_image=pictures[1],
        )  # fmt: skip

    def predict(
        high: bool,
        latents: Tensor,
        condition: Tensor | None,
        t: Tensor,
        places: Sequence[float] | None,
        conditional: bool,
    ) -> Tensor:
        model = pipe.transformer if high else pipe.transformer_2
        given = latents if condition is None else torch.cat([latents, condition], dim=1)
        with contextlib.nullcontext() if places is None else _tokens_at(model, places):
            velocity: Tensor = model(
                hidden_states=given.to(dtype),
                timestep=t.expand(len(latents)),
                encoder_hidden_states=texts[0 if conditional else 1],
                return_dict=False,
            )[0]
        return velocity

    def draw(frames: int) -> Tensor:
        return torch.randn(len(prompts), 16, frames, 4, 6, generator=torch.Generator().manual_seed(seed))

    return Parts(
        predict=predict,
        scheduler=scheduler,
        boundary=pipe.config.boundary_ratio * 1000,
        noise=draw,
        frames=frames,
        scales=scales,
        condition=condition,
        last_image=last_image is not None,
    )


@contextlib.contextmanager
def _tokens_at(model: Any, places: Sequence[float]) -> Iterator[None]:
    """As `reference.frames_at`, for a diffusers transformer: what its embedding answers, from the formula."""

    def angles(hidden_states: Tensor) -> tuple[Tensor, Tensor]:
        _, _, f, h, w = hidden_states.shape
        assert f == len(places)
        pairs = model.config.attention_head_dim // 2
        parts = (pairs - 2 * (pairs // 3), pairs // 3, pairs // 3)
        tokens = torch.tensor([(places[a], b, c) for a in range(f) for b in range(h // 2) for c in range(w // 2)])
        turned = torch.cat(
            [
                tokens[:, axis, None].double() * 10000.0 ** (-torch.arange(part).double() / part)
                for axis, part in enumerate(parts)
            ],
            dim=1,
        ).repeat_interleave(2, dim=1)[None, :, None]
        return turned.cos().float(), turned.sin().float()

    with mock.patch.object(model.rope, "forward", angles):
        yield
