"""The source's scheme as a plain loop: half-length latents are carried, and everything grows at the switch.

Written from the source's text and against the host's parts (its experts, solvers, VAE), with nothing of halfframe, so
that it can contradict it. The library itself carries full-length latents: the two ways must give the same video.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Iterator
from typing import Any
from unittest import mock

import numpy as np
import torch
from torch import Tensor

NEGATIVE = "blurry"


def duplicate(latents: Tensor, num_frames: int) -> Tensor:
    """F1, F1, F2, F2, ... cut to `num_frames`, time at dim -3."""
    frames = []
    for frame in latents.unbind(-3):
        frames += [frame, frame]
    return torch.stack(frames[:num_frames], dim=-3)


def half_frame_latents(
    pipe: Any,
    module: Any,
    prompt: str,
    *,
    size: tuple[int, int],
    frame_num: int,
    sampling_steps: int,
    shift: float,
    seed: int,
    sample_solver: str = "unipc",
    guide_scale: tuple[float, float] = (5.0, 5.0),
    short_noise: bool = False,
    expand: Callable[[Tensor, int], Tensor] = duplicate,
    restart: bool = False,
    half: bool = True,
    condition: Tensor | None = None,
    truncate: tuple[int, int] = (0, 0),
    reuse_delta: bool = False,
    every: int = 1,
) -> Tensor:
    """Final latents ``(16, F, h, w)`` of a run whose high-noise expert gets every other latent frame.

    The last steps are conditional only, as `truncate` says. Of the others, each expert's 1st, ``1 + every``-th, ...
    compute guidance anew, and the difference it makes is added to what the steps up to the next such one predict.
    """
    total = (frame_num - 1) // 4 + 1
    h, w = size[1] // 8, size[0] // 8
    generator = torch.Generator().manual_seed(seed)
    kept = math.ceil(total / 2) if half else total
    if short_noise:
        latents = torch.randn(16, kept, h, w, generator=generator)
    else:
        latents = torch.randn(16, total, h, w, generator=generator)
        if half:
            latents = latents[:, ::2]
    cond, uncond = pipe.text_encoder([prompt], pipe.device), pipe.text_encoder([NEGATIVE], pipe.device)

    solver, timesteps = solver_of(module, sample_solver, sampling_steps, shift)
    num_high = sum(t.item() >= pipe.boundary * 1000 for t in timesteps)
    delta: Tensor | None = None
    since = 0
    for i, t in enumerate(timesteps):
        high = t.item() >= pipe.boundary * 1000
        if i == num_high:
            delta, since = None, 0
        if not high and latents.shape[1] < total:
            latents = expand(latents, total)
            if restart:
                forget(solver)
            else:
                grow(solver, lambda tensor: expand(tensor, total))
        model = pipe.high_noise_model if high else pipe.low_noise_model
        tokens = latents.shape[1] * (h // 2) * (w // 2)
        arguments: dict[str, Any] = {"t": torch.stack([t]), "seq_len": math.ceil(tokens / pipe.sp_size) * pipe.sp_size}
        if condition is not None:
            arguments["y"] = [condition[:, ::2] if latents.shape[1] < total else condition]
        positive = model([latents], context=cond, **arguments)[0]
        scale = guide_scale[1 if high else 0]
        last, last_high = i >= len(timesteps) - truncate[0], high and i >= num_high - truncate[1]
        if last or last_high:
            velocity = positive if delta is None or not reuse_delta else positive + (scale - 1) * delta
        elif since % every == 0:
            negative = model([latents], context=uncond, **arguments)[0]
            velocity = negative + scale * (positive - negative)
            delta = positive - negative
        else:
            assert delta is not None
            velocity = positive + (scale - 1) * delta
        since += 1
        latents = solver.step(velocity[None], t, latents[None], return_dict=False, generator=generator)[0][0]
    return latents if latents.shape[1] == total else expand(latents, total)


def skipped_frames_latents(
    pipe: Any,
    module: Any,
    prompt: str,
    *,
    size: tuple[int, int],
    frame_num: int,
    sampling_steps: int,
    shift: float,
    seed: int,
    kept_at: Callable[[int, bool], list[int]],
    between: Callable[[Tensor, list[int], int], Tensor],
    true_positions: bool = True,
    sample_solver: str = "unipc",
    scale: float = 5.0,
    truncate: int = 0,
    every: int = 1,
    condition: Tensor | None = None,
) -> Tensor:
    """Final latents of a run whose experts compute the frames ``kept_at(step, high)``; x0 of the rest is made up.

    ``between(x0, kept, F)`` makes it up, from the guided velocity, once per step. The library does so per forward, each
    host by its own means.

    With `every`, guidance is computed at each expert's 1st, ``1 + every``-th, ... step. The steps after it keep other
    frames, so its difference is carried for all frames: on skipped ones, what `between` makes of that on the kept ones.
    """
    total = (frame_num - 1) // 4 + 1
    h, w = size[1] // 8, size[0] // 8
    generator = torch.Generator().manual_seed(seed)
    latents = torch.randn(16, total, h, w, generator=generator)
    cond, uncond = pipe.text_encoder([prompt], pipe.device), pipe.text_encoder([NEGATIVE], pipe.device)
    solver, timesteps = solver_of(module, sample_solver, sampling_steps, shift)
    num_high = sum(t.item() >= pipe.boundary * 1000 for t in timesteps)
    for i, t in enumerate(timesteps):
        high = t.item() >= pipe.boundary * 1000
        truncated = i >= len(timesteps) - truncate
        anew = (i if high else i - num_high) % every == 0
        kept = kept_at(i, high)
        model = pipe.high_noise_model if high else pipe.low_noise_model
        arguments: dict[str, Any] = {"t": torch.stack([t]), "seq_len": len(kept) * (h // 2) * (w // 2)}
        if condition is not None:
            arguments["y"] = [condition[:, kept]]
        with frames_at(kept if true_positions else list(range(len(kept)))):
            positive = model([latents[:, kept]], context=cond, **arguments)[0]
            velocity = positive
            if anew and not truncated:
                negative = model([latents[:, kept]], context=uncond, **arguments)[0]
                velocity = negative + scale * (positive - negative)
                delta = between(positive - negative, kept, total)
        sigma = solver.sigmas[i]
        x0 = between(latents[:, kept] - sigma * velocity, kept, total)
        full = (latents - x0) / sigma
        full[:, kept] = velocity
        if not anew and not truncated:
            full = full + (scale - 1) * delta
        latents = solver.step(full[None], t, latents[None], return_dict=False, generator=generator)[0][0]
    return latents


def merged_frames_latents(
    pipe: Any,
    module: Any,
    prompt: str,
    *,
    size: tuple[int, int],
    frame_num: int,
    sampling_steps: int,
    shift: float,
    seed: int,
    pairs_at: Callable[[int], list[tuple[int, int]]],
    sample_solver: str = "unipc",
    scale: float = 5.0,
) -> Tensor:
    """Final latents of a run whose high-noise expert sees means of the pairs of frames ``pairs_at(step)``.

    A mean of two frames with weights w and 1 - w is a frame at a lower noise level, up to a factor. Where that level
    is under the boundary, w is searched for which makes it the boundary.
    """
    total = (frame_num - 1) // 4 + 1
    h, w = size[1] // 8, size[0] // 8
    generator = torch.Generator().manual_seed(seed)
    latents = torch.randn(16, total, h, w, generator=generator)
    cond, uncond = pipe.text_encoder([prompt], pipe.device), pipe.text_encoder([NEGATIVE], pipe.device)
    solver, timesteps = solver_of(module, sample_solver, sampling_steps, shift)

    def level(sigma: float, first: float) -> tuple[float, float]:
        """What a mean has of clip and of noise."""
        return 1 - sigma, sigma * math.hypot(first, 1 - first)

    for i, t in enumerate(timesteps):
        high = t.item() >= pipe.boundary * 1000
        model = pipe.high_noise_model if high else pipe.low_noise_model
        sigma = float(solver.sigmas[i])
        if high:
            pairs = pairs_at(i)
            low, top = 0.5, 1.0
            for _ in range(60):
                first = (low + top) / 2
                clip, noise = level(sigma, first)
                low, top = (first, top) if noise / (clip + noise) < pipe.boundary else (low, first)
            clip, noise = level(sigma, top)
            x = torch.stack([top * latents[:, a] + (1 - top) * latents[:, b] for a, b in pairs], 1) / (clip + noise)
            ratio = noise / (clip + noise) / sigma
            places = [top * a + (1 - top) * b for a, b in pairs]
        else:
            x, ratio, places = latents, 1.0, [float(p) for p in range(total)]
        arguments: dict[str, Any] = {"t": torch.stack([t]) * ratio, "seq_len": len(places) * (h // 2) * (w // 2)}
        with frames_at(places):
            positive = model([x], context=cond, **arguments)[0]
            negative = model([x], context=uncond, **arguments)[0]
        velocity = negative + scale * (positive - negative)
        if high:
            shown = x - ratio * sigma * velocity
            lines = shown.movedim(1, -1)
            full = [[np.interp(p, places, line) for p in range(total)] for line in lines.reshape(-1, len(places))]
            x0 = torch.tensor(np.array(full)).float().reshape(*lines.shape[:-1], total).movedim(-1, 1)
            velocity = (latents - x0) / sigma
        latents = solver.step(velocity[None], t, latents[None], return_dict=False, generator=generator)[0][0]
    return latents


def solver_of(module: Any, name: str, steps: int, shift: float) -> tuple[Any, Any]:
    """One of the package's solvers, set up as its sampling loop does, and its timesteps."""
    if name == "unipc":
        solver = module.FlowUniPCMultistepScheduler(num_train_timesteps=1000, shift=1, use_dynamic_shifting=False)
        solver.set_timesteps(steps, device="cpu", shift=shift)
        return solver, solver.timesteps
    solver = module.FlowDPMSolverMultistepScheduler(num_train_timesteps=1000, shift=1, use_dynamic_shifting=False)
    timesteps, _ = module.retrieve_timesteps(solver, device="cpu", sigmas=module.get_sampling_sigmas(steps, shift))
    return solver, timesteps


@contextlib.contextmanager
def frames_at(positions: list[float]) -> Iterator[None]:
    """Rotary embeddings from their formula, with frame k of what an expert is given at ``positions[k]``.

    The host has a table and its first rows; here angles are computed: width D of a head in pairs, of which time has
    ``D/2 - 2 (D/2 // 3)``, height and width the rest in equal parts, each with frequencies 10000^(-2k / its width).
    """

    def rope_apply(x: Tensor, grid_sizes: Tensor, freqs: Tensor) -> Tensor:
        f, h, w = (int(size) for size in grid_sizes[0])
        pairs = x.shape[-1] // 2
        parts = (pairs - 2 * (pairs // 3), pairs // 3, pairs // 3)
        places = torch.tensor([(positions[a], b, c) for a in range(f) for b in range(h) for c in range(w)])
        angles = torch.cat(
            [
                places[:, axis, None].double() * 10000.0 ** (-torch.arange(part).double() / part)
                for axis, part in enumerate(parts)
            ],
            dim=1,
        )[:, None]
        even, odd = x[0, : len(places), :, 0::2].double(), x[0, : len(places), :, 1::2].double()
        turned = torch.stack([even * angles.cos() - odd * angles.sin(), even * angles.sin() + odd * angles.cos()], -1)
        return torch.cat([turned.flatten(-2).float(), x[0, len(places) :]])[None]

    with mock.patch("wan.modules.model.rope_apply", rope_apply):
        yield


def grow(solver: Any, function: Callable[[Tensor], Tensor]) -> None:
    """Pass what a multistep solver remembers through `function`: UniPC's and DPM-Solver++'s attributes by name."""
    solver.model_outputs = [None if m is None else function(m) for m in solver.model_outputs]
    if getattr(solver, "last_sample", None) is not None:
        solver.last_sample = function(solver.last_sample)


def forget(solver: Any) -> None:
    """Start a multistep solver afresh: first order next, and no corrector."""
    solver.model_outputs = [None] * len(solver.model_outputs)
    solver.lower_order_nums = 0
    if hasattr(solver, "last_sample"):
        solver.last_sample = None
