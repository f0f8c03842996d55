"""Random runs in the corners of what can be asked for, against the plain loop; and every scheduler of diffusers.

    python -m tests.attacks.grid diffusers 360 1000
    python -m tests.attacks.grid schedulers

The first draws so many runs, or as many as fit into so many seconds, and prints those that differ; the second prints
what becomes of each scheduler's configurations.
"""

from __future__ import annotations

import dataclasses
import functools
import random
import sys
import time
import warnings
from collections import Counter
from collections.abc import Callable
from typing import Any
from unittest import mock

import diffusers
import torch
from torch import Tensor
from torch.amp import autocast

import halfframe
from halfframe.testing import WanSizes, import_wan, tiny_diffusers_t2v, tiny_wan_t2v

from ..helpers_diffusers import PROMPT, SCHEDULERS, run, seeded
from ..hosts.plain_loop import Parts, diffusers_parts, official_parts, plain_loop

HEADS = {"transformer": "proj_out", "high_noise_model": "head.head"}
HEADS |= {"transformer_2": "proj_out", "low_noise_model": "head.head"}
STRATEGIES: list[tuple[str, dict[str, Any]]] = [
    ("self-duplicate", {}),
    ("self-duplicate", {"noise": "short"}),
    ("previous-odd", {}),
    ("own-noise", {}),
    ("interpolate", {"stride": 3}),
    ("interleave", {}),
    ("interleave", {"stride": 3, "until": "end"}),
    ("merge", {}),
    ("merge", {"stride": 3, "until": "end"}),
    ("merge", {"until": 1, "stride": 4}),
]
# Rounding: the plain loop reduces before it rounds to what the expert takes, the hosts after. Relative, of the norm.
TOLERANCE = {torch.float32: 1e-5, torch.bfloat16: 0.05}


@dataclasses.dataclass(frozen=True)
class Case:
    """One run. `boundary` is the step at which it lies exactly, of one more than there are for 0."""

    host: str
    strategy: str
    options: tuple[tuple[str, Any], ...]
    frames: int
    steps: int
    dtype: torch.dtype
    boundary: int
    clips: int
    generator: str
    scales: tuple[float, float]
    shift: float
    scheduler: str


def draw(host: str, source: random.Random) -> Case:
    """A case."""
    strategy, options = source.choice(STRATEGIES)
    steps = source.randint(1, 6)
    official = host == "wan"
    return Case(
        host=host,
        strategy=strategy,
        options=tuple(options.items()),
        frames=source.randint(1, 4),
        steps=steps,
        dtype=source.choice([torch.float32, torch.bfloat16]),
        boundary=source.randint(0, steps),
        clips=1 if official else source.choice([1, 1, 2, 3]),
        generator="one" if official else source.choice(["one", "list", "none"]),
        scales=source.choice([(0.0, 0.0), (1.0, 1.0), (4.0, 4.0), (4.0, 2.0), (3.0, 1.0), (1.0, 3.0), (2.0, 0.0)]),
        shift=source.choice([0.01, 0.3, 1.0, 5.0, 12.0, 50.0]),
        scheduler=source.choice(["unipc", "dpm++"] if official else ["unipc", "dpm++", "euler", "heun"]),
    )


@functools.cache
def pipe_of(host: str, dtype: torch.dtype) -> Any:
    """One pipeline each. Its experts are toned down, so that rounding stays where it is."""
    sizes = WanSizes(num_layers=1)
    if host == "wan":  # float32 weights: what upstream computes in float32 in spite of them, a CPU's autocast cannot
        pipe = tiny_wan_t2v(sizes=sizes)
        pipe.param_dtype = dtype
    else:
        pipe = tiny_diffusers_t2v(sizes=sizes, dtype=dtype)
    for expert, layer in HEADS.items():
        if hasattr(pipe, expert):
            getattr(pipe, expert).get_submodule(layer).weight.data.mul_(0.3)
    return pipe


def scheduler_of(case: Case) -> Any:
    """Of a diffusers pipeline, with the case's shift."""
    scheduler = SCHEDULERS[case.scheduler]()
    shift = "flow_shift" if "flow_shift" in scheduler.config else "shift"
    return type(scheduler).from_config(scheduler.config, **{shift: case.shift})


def both(case: Case) -> tuple[Tensor, Tensor]:
    """Final latents with halfframe, and of the plain loop; each ``(B, 16, F, 4, 6)``."""
    return both_official(case) if case.host == "wan" else both_diffusers(case)


def expected_of(case: Case, parts: Parts) -> Tensor:
    if not parts.high_steps and case.strategy in ("self-duplicate", "previous-odd"):  # nothing to halve
        return plain_loop(parts, "interpolate", stride=1)
    return plain_loop(parts, case.strategy, **dict(case.options))


def boundary_at(case: Case, timesteps: Tensor) -> float:
    return float(timesteps[case.boundary]) if case.boundary < len(timesteps) else 0.0


def both_diffusers(case: Case) -> tuple[Tensor, Tensor]:
    pipe = pipe_of(case.host, case.dtype)
    pipe.scheduler = scheduler_of(case)
    pipe.scheduler.set_timesteps(case.steps)
    pipe.register_to_config(boundary_ratio=boundary_at(case, pipe.scheduler.timesteps) / 1000)
    generators = {
        "one": lambda: seeded(5),
        "list": lambda: [seeded(n) for n in range(case.clips)],
        "none": lambda: torch.manual_seed(5) and None,
    }[case.generator]

    def noise(frames: int) -> Tensor:
        given, shape = generators(), (1 if case.generator == "list" else case.clips, 16, frames, 4, 6)
        if isinstance(given, list):
            return torch.cat([torch.randn(shape, generator=generator) for generator in given])
        return torch.randn(shape, generator=given)

    prompts = [PROMPT, "a cat", "two dogs"][: case.clips]
    guided = case.scales[0] > 1
    arguments = {
        "prompt": prompts,
        "negative_prompt": ["blurry"] * case.clips,
        "num_frames": 4 * case.frames - 3,
        "num_inference_steps": case.steps,
        "guidance_scale": case.scales[0],
        "guidance_scale_2": case.scales[1],
        "generator": generators(),
    }
    with halfframe.enabled(pipe, case.strategy, **dict(case.options)):
        latents = run(pipe, **arguments)
    parts = diffusers_parts(
        pipe,
        prompts,
        num_frames=4 * case.frames - 3,
        steps=case.steps,
        scales=case.scales if guided else (1.0, 1.0),
    )
    parts.noise = noise
    return latents, expected_of(case, parts)


def both_official(case: Case) -> tuple[Tensor, Tensor]:
    pipe, module = pipe_of(case.host, case.dtype), import_wan("text2video")
    arguments = {
        "frame_num": 4 * case.frames - 3,
        "sampling_steps": case.steps,
        "shift": case.shift,
        "seed": 7,
        "sample_solver": case.scheduler,
        "guide_scale": case.scales[::-1],
    }
    parts = official_parts(pipe, module, PROMPT, **arguments)
    pipe.boundary = boundary_at(case, parts.scheduler.timesteps) / 1000
    parts.boundary = pipe.boundary * 1000
    seen: list[Tensor] = []
    with (
        # Upstream asks for CUDA's autocast, which is none on a CPU.
        mock.patch.object(torch.amp, "autocast", lambda _, **given: autocast("cpu", **given)),
        mock.patch.object(pipe.vae, "decode", lambda clips: seen.extend(clips) or [torch.zeros(3, 1, 32, 48)]),
    ):
        with halfframe.enabled(pipe, case.strategy, **dict(case.options)):
            pipe.generate(PROMPT, size=(48, 32), offload_model=False, **arguments)
        with autocast("cpu", dtype=case.dtype):
            return seen[0][None], expected_of(case, parts)


def distance(seen: Tensor, expected: Tensor) -> float:
    """Of the norms; infinite where the shapes differ."""
    if seen.shape != expected.shape:
        return float("inf")
    both_lost = ~seen.isfinite() & ~expected.isfinite()
    seen, expected = (tensor.double().masked_fill(both_lost, 0) for tensor in (seen, expected))
    return float((seen - expected).norm() / (expected.norm() + 1e-12))


def wrong(case: Case) -> str:
    """What is wrong with a case; empty if nothing is."""
    try:
        apart = distance(*both(case))
    except Exception as error:
        return f"{type(error).__name__}: {error}"
    return "" if apart <= TOLERANCE[case.dtype] else f"apart by {apart:.2g}"


def attack(host: str, count: int, seconds: float = 1e9, seed: int = 0) -> tuple[int, list[tuple[Case, str]]]:
    """How many cases were run, and those that differ."""
    source, began, found, done = random.Random(seed), time.perf_counter(), [], 0
    while done < count and time.perf_counter() - began < seconds:
        case = draw(host, source)
        reason = wrong(case)
        if reason:
            found.append((case, reason))
        done += 1
    return done, found


# Schedulers.

FLOW = {"prediction_type": "flow_prediction", "use_flow_sigmas": True, "flow_shift": 12.0}


def configurations() -> dict[str, Callable[[], Any]]:
    """Schedulers of diffusers as a user may put them into a Wan pipeline."""
    unipc, dpm = diffusers.UniPCMultistepScheduler, diffusers.DPMSolverMultistepScheduler
    euler, heun = diffusers.FlowMatchEulerDiscreteScheduler, diffusers.FlowMatchHeunDiscreteScheduler
    many: dict[str, tuple[Any, dict[str, Any]]] = {
        "UniPC": (unipc, FLOW),
        "UniPC order 1": (unipc, {**FLOW, "solver_order": 1}),
        "UniPC order 3": (unipc, {**FLOW, "solver_order": 3}),
        "UniPC bh1": (unipc, {**FLOW, "solver_type": "bh1"}),
        "UniPC bh1 order 3": (unipc, {**FLOW, "solver_type": "bh1", "solver_order": 3}),
        "UniPC without corrector": (unipc, {**FLOW, "disable_corrector": [0, 1, 2, 3]}),
        "UniPC without lower order at the end": (unipc, {**FLOW, "lower_order_final": False}),
        "DPM++": (dpm, FLOW),
        "DPM++ order 1": (dpm, {**FLOW, "solver_order": 1}),
        "DPM++ order 3": (dpm, {**FLOW, "solver_order": 3}),
        "DPM++ heun": (dpm, {**FLOW, "solver_type": "heun"}),
        "DPM++ euler at the end": (dpm, {**FLOW, "euler_at_final": True}),
        "SDE-DPM++": (dpm, {**FLOW, "algorithm_type": "sde-dpmsolver++"}),
        "DPM++ singlestep": (diffusers.DPMSolverSinglestepScheduler, FLOW),
        "DEIS": (diffusers.DEISMultistepScheduler, FLOW),
        "SA": (diffusers.SASolverScheduler, FLOW),
        "Euler": (euler, {"shift": 12.0}),
        "Euler, Karras": (euler, {"shift": 12.0, "use_karras_sigmas": True}),
        "Euler, beta": (euler, {"shift": 12.0, "use_beta_sigmas": True}),
        "Euler, exponential": (euler, {"shift": 12.0, "use_exponential_sigmas": True}),
        "Euler, stochastic": (euler, {"shift": 12.0, "stochastic_sampling": True}),
        "Heun": (heun, {"shift": 12.0}),
        "LCM": (diffusers.FlowMatchLCMScheduler, {"shift": 12.0}),
        "UniPC, epsilon": (unipc, {}),
        "DPM++, epsilon": (dpm, {}),
        "DPM++ with thresholding": (dpm, {**FLOW, "thresholding": True}),
        "Euler ancestral": (diffusers.EulerAncestralDiscreteScheduler, {}),
        "DDIM": (diffusers.DDIMScheduler, {}),
        "Euler, inverted": (euler, {"shift": 12.0, "invert_sigmas": True}),
    }
    return {name: functools.partial(cls, **config) for name, (cls, config) in many.items()}


DRAWING = ("SDE-DPM++", "SA", "Euler, stochastic", "LCM")
"""These draw noise at each step, so a loop that carries half a clip draws another."""


def outcomes() -> dict[tuple[str, str], str]:
    """What becomes of each configuration with each of three strategies."""
    return {
        (name, strategy): outcome(make, strategy)
        for name, make in configurations().items()
        for strategy in ("merge", "interleave", *(() if name in DRAWING else ("self-duplicate",)))
    }


def outcome(make: Callable[[], Any], strategy: str) -> str:
    """``"equal"``, ``"refused: ..."``, ``"not on plain diffusers: ..."``, or what is wrong."""
    pipe = pipe_of("diffusers", torch.float32)
    pipe.register_to_config(boundary_ratio=0.875)
    try:
        pipe.scheduler = make()
        torch.manual_seed(3)
        run(pipe)
    except Exception as error:
        return f"not on plain diffusers: {type(error).__name__}: {error}"
    try:
        pipe.scheduler = make()
        torch.manual_seed(3)  # of schedulers that draw
        with halfframe.enabled(pipe, strategy):
            latents = run(pipe)
    except halfframe.HalfframeError as error:
        return f"refused: {error}"
    pipe.scheduler = make()
    parts = diffusers_parts(pipe, [PROMPT], num_frames=17, steps=8)
    torch.manual_seed(3)
    apart = distance(latents, plain_loop(parts, strategy))
    return "equal" if apart < 2e-5 else f"WRONG: apart by {apart:.2g}"


if __name__ == "__main__":
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    if sys.argv[1] == "schedulers":
        results = outcomes()
        for (name, strategy), result in results.items():
            print(f"{name:36} {strategy:15} {result[:150]}")
        print(Counter(result.partition(":")[0] for result in results.values()))
    else:
        limit = float(sys.argv[3]) if len(sys.argv) > 3 else 1e9
        number, found = attack(sys.argv[1], int(sys.argv[2]), limit, int(sys.argv[4]) if len(sys.argv) > 4 else 0)
        for case, reason in found:
            print(reason, case)
        print(f"{sys.argv[1]}: {number} runs, {len(found)} differ")
