"""Recipes on every host against a loop written here from their description, and the hosts against each other."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

import halfframe
from halfframe.testing import diffusers_from_wan_state, tiny_diffusers_t2v, tiny_wan_t2v

from ..helpers_diffusers import ARGS, PROMPT, run, seeded
from .plain_loop import Parts, held, straight, view_at
from .test_cross_host import official_solver
from .test_plain_loop import SCALES, STEPS, close, parts_of, pipe_of, sample

HOSTS = ["official t2v", "official i2v", "diffusers t2v", "diffusers i2v"]


def recipe_loop(parts: Parts, moves: tuple[str, ...]) -> Tensor:
    """Final latents of a run that does at step i what ``moves[i]`` says.

    What each of the two forward passes of a step says that the clip shows is carried to steps that reuse it, and what
    guidance adds to the conditional prediction to steps of the same expert that do without the other pass.
    """
    scheduler, total = parts.scheduler, parts.frames
    latents = parts.noise(total)
    shown: list[list[Tensor]] = []  # of each computed step what each pass shows
    levels: list[float] = []
    added: Tensor | None = None
    before: bool | None = None
    for i, t in enumerate(scheduler.timesteps):
        high, sigma = bool(t >= parts.boundary), float(scheduler.sigmas[i])
        if high != before:
            added, before = None, high
        scale = parts.scales[0 if high else 1]
        base, _, short = moves[i].partition("+")
        guided = scale != 1

        def predict(
            conditional: bool, i: int = i, t: Tensor = t, base: str = base, latents: Tensor = latents
        ) -> Tensor:
            high, sigma = bool(t >= parts.boundary), float(scheduler.sigmas[i])
            name, _, stride = base.partition(":")
            view = None
            if name != "full":
                until = "switch" if high else "end"
                window = {"stride": int(stride), "full_start": 0, "until": until}
                view = view_at(parts, name, i, sigma, **window)
            if view is None:
                return parts.predict(high, latents, parts.condition, t, None, conditional)
            factor = 1 - sigma + sigma * view.noise
            level = sigma * view.noise / factor
            given = view.of(latents) / factor
            condition = None if parts.condition is None else view.of(parts.condition)
            moment = t if view.noise == 1 else t * (level / sigma)
            computed = parts.predict(high, given, condition, moment, view.told, conditional)
            between = held if name == "own-noise" else straight
            return (latents - between(given - level * computed, view.places, total)) / sigma

        if base == "reuse":
            positive, *rest = [(latents - x0) / sigma for x0 in shown[-1]]
        elif base.startswith("extend:"):
            weight = float(base.removeprefix("extend:"))
            gone = (levels[-1] - sigma) / (levels[-2] - levels[-1])
            extended = [new + weight * gone * (new - old) for new, old in zip(shown[-1], shown[-2], strict=True)]
            positive, *rest = [(latents - x0) / sigma for x0 in extended]
        else:
            positive, rest = predict(True), []
            if guided and not short:
                rest = [predict(False)]
                added = positive - rest[0]
            elif guided:
                rest = [positive if short == "cond" or added is None else positive - added]
            if levels and sigma == levels[-1]:  # Heun's second look at a level replaces its first
                shown, levels = shown[:-1], levels[:-1]
            shown.append([latents - sigma * velocity for velocity in (positive, *rest)])
            levels.append(sigma)
        velocity = rest[0] + scale * (positive - rest[0]) if rest else positive
        latents = scheduler.step(velocity, t, latents, return_dict=False)[0]
    return latents


# Six steps; at shift 12 four of them are the high-noise expert's, five in diffusers' image-to-video.
RECIPES = {
    "full": ("full", "full", "full", "full", "full", "full"),
    "maps": ("merge:2", "merge:3", "interleave:2", "own-noise:2", "interleave:3", "merge:2"),
    "reuse": ("merge:2", "reuse", "full", "reuse", "reuse", "interpolate:2"),
    "reuse across the switch": ("full", "interleave:2", "interleave:2", "interleave:2", "reuse", "reuse"),
    "cond": ("full+cond", "merge:2+cond", "full", "interleave:2+cond", "full+cond", "merge:2+cond"),
    "all": ("merge:4", "full+delta", "reuse", "interleave:3+cond", "merge:2", "full"),
    "delta": ("full", "merge:2+delta", "interleave:2+delta", "reuse", "full", "full"),
    "extend": ("full", "merge:2", "extend:1", "full", "extend:-0.5", "full"),
    "extend across the switch": ("interleave:2", "full", "full+cond", "full", "extend:0.5", "reuse"),
    "cond and reuse": ("merge:2", "full+cond", "reuse", "merge:2", "full+cond", "reuse"),
}
LOW_DELTA = {  # where the low-noise expert's first step is known
    "official t2v": ("full", "full+delta", "merge:2", "reuse", "full", "interleave:2+delta"),
    "diffusers t2v": ("full", "full+delta", "merge:2", "reuse", "full", "interleave:2+delta"),
}


def made(host: str, moves: tuple[str, ...], scheduler: str = "unipc", **arguments: Any) -> tuple[Tensor, Any]:
    with halfframe.enabled(pipe_of(host), halfframe.Recipe(moves)) as enabled:
        latents = sample(host, 8, scheduler, **arguments)
    return latents, enabled.report


@pytest.mark.parametrize("host", HOSTS)
@pytest.mark.parametrize("name", RECIPES)
@pytest.mark.parametrize("scheduler", ["unipc", "dpm++"])
@pytest.mark.filterwarnings("ignore:halfframe. nothing was skipped")  # so it is where all is full
def test_recipe_is_the_loop(host: str, name: str, scheduler: str) -> None:
    moves = RECIPES[name]
    with torch.no_grad():
        expected = recipe_loop(parts_of(host, 8, scheduler), moves)
    latents, report = made(host, moves, scheduler)
    close(latents, expected)
    assert len(report.moves) == STEPS
    assert all(seen.split("+")[0] == move.split("+")[0] for seen, move in zip(report.moves, moves, strict=True)) or (
        "i2v" in host  # where means of frames are frames
    )


class Moves(halfframe.Strategy):
    """Reuses at the given steps, and has no say in guidance."""

    def __init__(self, moves: dict[int, halfframe.Reuse]) -> None:
        self._moves = moves

    def move(self, step: halfframe.Step) -> halfframe.Reuse | None:
        return self._moves.get(step.index)


@pytest.mark.parametrize("host", HOSTS)
@pytest.mark.parametrize("last", ["reuse", "extend:0.5"])
def test_guidance_leaves_reused_steps_alone(host: str, last: str) -> None:
    """Both passes of such a step are reused, and what they say is nothing for a later one to go on from."""
    with torch.no_grad():
        expected = recipe_loop(parts_of(host, 8), ("full", "full", "full", "full+cond", "extend:1", last))
    moves = {4: halfframe.Reuse(1), 5: halfframe.Reuse(0.5 if last != "reuse" else 0)}
    guidance = halfframe.Guidance(skip_last=3)
    with halfframe.enabled(pipe_of(host), Moves(moves), guidance=guidance) as enabled:
        latents = sample(host, 8)
    close(latents, expected)
    assert enabled.report is not None
    assert enabled.report.moves == ("full", "full", "full", "full+cond", "extend:1", last)
    plan = halfframe.plan(frame_num=29, sampling_steps=STEPS, strategy=Moves(moves), guidance=guidance)
    assert plan.report.moves == enabled.report.moves


@pytest.mark.parametrize("host", LOW_DELTA)
def test_delta_in_both_experts(host: str) -> None:
    with torch.no_grad():
        expected = recipe_loop(parts_of(host, 8), LOW_DELTA[host])
    latents, report = made(host, LOW_DELTA[host])
    close(latents, expected)
    assert report.moves == LOW_DELTA[host]
    assert (report.high.passes, report.low.passes) == (5, 3)


@pytest.mark.parametrize("host", ["diffusers t2v", "diffusers i2v"])
@pytest.mark.parametrize("scheduler", ["euler", "heun"])
@pytest.mark.parametrize("name", ["maps", "reuse", "extend", "all", "cond and reuse"])
def test_recipe_with_other_schedulers(host: str, scheduler: str, name: str) -> None:
    """Heun's schedule has each step but the last twice; a recipe is for its eleven entries."""
    parts = parts_of(host, 8, scheduler)
    count = len(parts.scheduler.timesteps)
    moves = RECIPES[name][:2] + ("full",) * (count - STEPS) + RECIPES[name][2:]
    with torch.no_grad():
        expected = recipe_loop(parts, moves)
    latents, report = made(host, moves, scheduler)
    # Heun's levels lie close at the end, and differences over them make roundings large.
    torch.testing.assert_close(latents, expected, rtol=0, atol=1e-4 if name == "extend" else 1e-5)
    assert len(report.moves) == count == (11 if scheduler == "heun" else 6)


@pytest.mark.parametrize("host", ["diffusers t2v", "diffusers i2v"])
@pytest.mark.parametrize("name", ["maps", "reuse", "reuse across the switch", "all"])
@pytest.mark.filterwarnings("ignore:halfframe. no unconditional pass was skipped")
def test_recipe_without_guidance(host: str, name: str) -> None:
    parts = parts_of(host, 8)
    parts.scales = (1.0, 1.0)
    with torch.no_grad():
        expected = recipe_loop(parts, RECIPES[name])
    pipe = pipe_of(host)
    with halfframe.enabled(pipe, halfframe.Recipe(RECIPES[name])):
        latents = run(pipe, num_frames=29, num_inference_steps=STEPS, guidance_scale=1.0)
    close(latents, expected)


def test_recipe_of_another_length(t2v: Any) -> None:
    message = "the recipe is for 6 steps, but the schedule has 8; ask for as many steps"
    with halfframe.enabled(t2v, halfframe.Recipe(("full",) * 6)), pytest.raises(halfframe.StrategyError, match=message):
        t2v.generate("a", size=(32, 32), frame_num=9, sampling_steps=8, shift=12.0, offload_model=False)


@pytest.mark.parametrize(
    "moves",
    [
        ("merge:2", "full", "reuse", "interleave:2+cond", "merge:3+delta", "full+delta", "full", "merge:2+delta"),
        ("interleave:3", "merge:2", "merge:2+cond", "reuse", "full", "full", "reuse", "interleave:2"),
    ],
)
def test_hosts_agree_on_a_recipe(moves: tuple[str, ...], tmp_path: Any) -> None:
    path = tmp_path / "recipe.json"
    halfframe.Recipe(moves, shift=12.0, boundary=0.875, high_noise_steps=6).save(path)
    official, pipe = tiny_wan_t2v(), tiny_diffusers_t2v(seed=1)
    for ours, theirs in (("transformer", "high_noise_model"), ("transformer_2", "low_noise_model")):
        getattr(pipe, ours).load_state_dict(diffusers_from_wan_state(getattr(official, theirs).state_dict()))
    latents: list[Tensor] = []
    official.vae.decode = lambda clips: latents.extend(clips) or [torch.zeros(3, 21, 32, 48)]
    steps = ARGS["num_inference_steps"]
    clip: dict[str, Any] = {"size": (48, 32), "frame_num": 21, "sampling_steps": steps, "shift": 12.0, "seed": 7}
    with halfframe.enabled(official, str(path)) as first:
        official.generate(PROMPT, **clip, offload_model=False)
    pipe.scheduler = official_solver()
    with halfframe.enabled(pipe, str(path)) as second:
        ours = run(pipe, num_frames=21, generator=seeded(7))[0]
    torch.testing.assert_close(ours, latents[0], rtol=0, atol=1e-4)
    assert first.report is not None
    assert second.report is not None
    assert first.report.moves == second.report.moves == moves
    assert (first.report.high, first.report.low) == (second.report.high, second.report.low)


def test_scales_are_those_of_two_experts() -> None:
    """With equal ones, the loop above could take one for the other."""
    assert SCALES[0] != SCALES[1]
