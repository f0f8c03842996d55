"""Recipes on every host against a loop written here from their description, and the hosts against each other."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest
import torch
from torch import Tensor

import halfframe
from halfframe.testing import diffusers_from_wan_state, tiny_diffusers_t2v, tiny_wan_t2v

from ..helpers_diffusers import ARGS, PROMPT, run, seeded
from . import test_plain_loop
from .plain_loop import Parts, held, straight, view_at
from .test_cross_host import official_solver
from .test_plain_loop import SCALES, STEPS, close, parts_of, pipe_of, sample

HOSTS = ["official t2v", "official i2v", "diffusers t2v", "diffusers i2v"]


def recipe_loop(parts: Parts, moves: tuple[str, ...], guided: list[Tensor] | None = None) -> Tensor:
    """Final latents of a run that does at step i what ``moves[i]`` says.

    What each of the two forward passes of a step says that the clip shows is carried to steps that reuse it, and what
    guidance adds to the conditional prediction to steps of the same expert that do without the other pass. Where there
    are weights, the first belongs to the latest of these. What each step shows after guidance is added to `guided`.
    """
    scheduler, total = parts.scheduler, parts.frames
    latents = parts.noise(total)
    shown: list[list[Tensor]] = []  # of each computed step what each pass shows
    added: list[Tensor] = []  # by guidance, at each step of this expert that made both passes
    before: bool | None = None
    for i, t in enumerate(scheduler.timesteps):
        high, sigma = bool(t >= parts.boundary), float(scheduler.sigmas[i])
        if high != before:
            added, before = [], high
        scale = parts.scales[0 if high else 1]
        base, _, rule = moves[i].partition("+")
        short, _, rule_weights = rule.partition(":")
        has_guidance = scale != 1

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

        if base.startswith("reuse"):
            weights = base.removeprefix("reuse").removeprefix(":")
            positive, *rest = [(latents - weighed(x0, weights)) / sigma for x0 in zip(*shown, strict=True)]
        else:
            positive, rest = predict(True), []
            if has_guidance and not short:
                rest = [predict(False)]
                added.append(positive - rest[0])
            elif has_guidance:
                rest = [positive if short == "cond" else positive - weighed(added, rule_weights)]
            shown.append([latents - sigma * velocity for velocity in (positive, *rest)])
        velocity = rest[0] + scale * (positive - rest[0]) if rest else positive
        if guided is not None:
            guided.append(latents - sigma * velocity)
        latents = scheduler.step(velocity, t, latents, return_dict=False)[0]
    return latents


def weighed(parts: Sequence[Tensor], weights: str) -> Tensor:
    """The last of `parts`, or by weights such as ``"1.5,-0.5"``: 1.5 times the last less half of the one before it."""
    total = torch.zeros_like(parts[-1])
    for k, weight in enumerate((weights or "1").split(",")):
        total += float(weight) * parts[len(parts) - 1 - k]
    return total


# Six steps; at shift 12 four of them are the high-noise expert's, five in diffusers' image-to-video.
RECIPES = {
    "full": ("full", "full", "full", "full", "full", "full"),
    "maps": ("merge:2", "merge:3", "interleave:2", "own-noise:2", "interleave:3", "merge:2"),
    "reuse": ("merge:2", "reuse", "full", "reuse", "reuse", "interpolate:2"),
    "reuse across the switch": ("full", "interleave:2", "interleave:2", "interleave:2", "reuse", "reuse"),
    "cond": ("full+cond", "merge:2+cond", "full", "interleave:2+cond", "full+cond", "merge:2+cond"),
    "all": ("merge:4", "full+delta", "reuse", "interleave:3+cond", "merge:2", "full"),
    "delta": ("full", "merge:2+delta", "interleave:2+delta", "reuse", "full", "full"),
    "two weights": ("full", "merge:2", "reuse:1.72,-0.72", "full", "reuse:0.5,0.75", "full"),
    "three weights": ("merge:3", "full", "interleave:2", "reuse:2.1,-1.4,0.3", "full", "reuse:1.2,0.3,-0.5"),
    "weights across the switch": ("interleave:2", "full", "full+cond", "full", "reuse:1.6,-0.9,0.3", "reuse:0.9"),
    "two weights of guidance": ("full", "merge:2", "full+delta:1.47,-0.58", "reuse:1.5,-0.5", "full", "full"),
    "three weights of guidance": ("full", "interleave:2", "full", "merge:2+delta:2,-1.3,0.4", "full", "full+delta:0.8"),
    "cond and reuse": ("merge:2", "full+cond", "reuse", "merge:2", "full+cond", "reuse"),
}
LOW_DELTA = {  # where the low-noise expert's first step is known
    "one weight": ("full", "full+delta", "merge:2", "reuse", "full", "interleave:2+delta"),
    "own weights": ("full", "full", "full+delta:1.47,-0.58", "reuse:1.5,-0.5", "full", "interleave:2+delta:0.7"),
}
TEN = (  # seven of ten steps are the high-noise expert's, six in image-to-video
    *(
        "merge:2",
        "full",
        "full",
        "interleave:2+delta:2.2,-1.5,0.3",
        "full+delta:1.3,-0.3",
        "reuse:1.4,-0.6,0.2",
        "full",
    ),
    *("full", "full", "full+delta:1.5,-0.7"),
)


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
@pytest.mark.parametrize("last", ["reuse", "reuse:1.5,-0.5"])
def test_guidance_leaves_reused_steps_alone(host: str, last: str) -> None:
    """Both passes of such a step are reused, and what they say is nothing for a later one to go on from."""
    with torch.no_grad():
        expected = recipe_loop(parts_of(host, 8), ("full", "full", "full", "full+cond", "reuse:2,-1", last))
    moves = {4: halfframe.Reuse((2, -1)), 5: halfframe.Reuse((1.5, -0.5) if last != "reuse" else (1,))}
    guidance = halfframe.Guidance(skip_last=3)
    with halfframe.enabled(pipe_of(host), Moves(moves), guidance=guidance) as enabled:
        latents = sample(host, 8)
    close(latents, expected)
    assert enabled.report is not None
    assert enabled.report.moves == ("full", "full", "full", "full+cond", "reuse:2,-1", last)
    plan = halfframe.plan(frame_num=29, sampling_steps=STEPS, strategy=Moves(moves), guidance=guidance)
    assert plan.report.moves == enabled.report.moves


@pytest.mark.parametrize("host", ["official t2v", "diffusers t2v"])
@pytest.mark.parametrize("name", LOW_DELTA)
def test_delta_in_both_experts(host: str, name: str) -> None:
    moves = LOW_DELTA[name]
    with torch.no_grad():
        expected = recipe_loop(parts_of(host, 8), moves)
    latents, report = made(host, moves)
    close(latents, expected)
    assert report.moves == moves
    plan = halfframe.plan(frame_num=29, sampling_steps=STEPS, strategy=halfframe.Recipe(moves))
    assert plan.report.moves == moves
    assert (report.high.passes, report.low.passes) == (plan.report.high.passes, plan.report.low.passes)


@pytest.mark.parametrize("host", HOSTS)
@pytest.mark.parametrize("scheduler", ["unipc", "dpm++"])
def test_weights_of_guidance_in_both_experts(host: str, scheduler: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(test_plain_loop, "STEPS", len(TEN))
    parts = parts_of(host, 8, scheduler)
    assert parts.high_steps in (6, 7)
    with torch.no_grad():
        expected = recipe_loop(parts, TEN)
    latents, report = made(host, TEN, scheduler)
    close(latents, expected)
    assert [move.partition("+")[2] for move in report.moves] == [move.partition("+")[2] for move in TEN]


class Steps:
    """A plugin that keeps what it sees of each step."""

    def __init__(self) -> None:
        self.steps: list[halfframe.Step] = []
        self.latents: list[Tensor] = []
        self.shown: list[Tensor] = []
        self.after_switch: list[Tensor] = []

    @halfframe.hookimpl
    def halfframe_step(self, step: halfframe.Step, latents: Tensor, velocity: Tensor) -> None:
        assert latents.shape == velocity.shape
        self.steps.append(step)
        self.latents.append(latents.clone())
        self.shown.append(latents - step.sigma * velocity)

    @halfframe.hookimpl
    def halfframe_boundary(self, boundary: halfframe.Boundary) -> None:
        self.after_switch.append(boundary.latents.clone())


@pytest.mark.parametrize("host", HOSTS)
@pytest.mark.parametrize("name", ["all", "weights across the switch", "two weights of guidance"])
def test_hooks_see_each_steps_guided_prediction(host: str, name: str) -> None:
    expected: list[Tensor] = []
    with torch.no_grad():
        recipe_loop(parts_of(host, 8), RECIPES[name], expected)
    seen = Steps()
    with halfframe.enabled(pipe_of(host), halfframe.Recipe(RECIPES[name]), plugins=[seen]):
        sample(host, 8)
    assert [step.index for step in seen.steps] == list(range(STEPS))
    for shown, one in zip(seen.shown, expected, strict=True):
        close(shown.reshape(one.shape), one)


@pytest.mark.parametrize("host", HOSTS)
def test_hooks_see_what_the_switch_made_of_the_latents(host: str) -> None:
    seen = Steps()
    with halfframe.enabled(pipe_of(host), "self-duplicate", plugins=[seen]):
        sample(host, 8)
    first = next(step for step in seen.steps if step.expert == "low").index
    (after,) = seen.after_switch
    assert torch.equal(seen.latents[first].reshape(after.shape), after)


@pytest.mark.parametrize("host", ["diffusers t2v", "diffusers i2v"])
@pytest.mark.parametrize("scheduler", ["euler", "heun"])
@pytest.mark.parametrize("name", ["maps", "reuse", "three weights", "all", "cond and reuse"])
def test_recipe_with_other_schedulers(host: str, scheduler: str, name: str) -> None:
    """Heun's schedule has each step but the last twice; a recipe is for its eleven entries."""
    parts = parts_of(host, 8, scheduler)
    count = len(parts.scheduler.timesteps)
    moves = RECIPES[name][:2] + ("full",) * (count - STEPS) + RECIPES[name][2:]
    with torch.no_grad():
        expected = recipe_loop(parts, moves)
    latents, report = made(host, moves, scheduler)
    torch.testing.assert_close(latents, expected, rtol=0, atol=1e-5)
    assert len(report.moves) == count == (11 if scheduler == "heun" else 6)


@pytest.mark.parametrize("host", ["diffusers t2v", "diffusers i2v"])
@pytest.mark.parametrize("early", [("full+delta:1.5,-0.5", "reuse:1.4,-0.4"), ("reuse:1.4,-0.3", "full+delta:0.9")])
def test_each_entry_of_heuns_schedule_is_a_step(host: str, early: tuple[str, ...]) -> None:
    """Its second and third are at one noise level, and both count."""
    parts = parts_of(host, 8, "heun")
    moves = ("full", "full", "merge:2", *early, *["full"] * 6)
    with torch.no_grad():
        expected = recipe_loop(parts, moves)
    latents, report = made(host, moves, "heun")
    torch.testing.assert_close(latents, expected, rtol=0, atol=1e-5)
    assert [move.partition("+")[2] for move in report.moves] == [move.partition("+")[2] for move in moves]


@pytest.mark.parametrize("host", ["diffusers t2v", "diffusers i2v"])
@pytest.mark.parametrize("name", ["maps", "reuse", "reuse across the switch", "weights across the switch", "all"])
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


@pytest.mark.parametrize("shift", [11.0, 13.0])
def test_recipe_of_another_shift(t2v: Any, shift: float) -> None:
    sigmas = tuple(shift * (8 - index) / (8 + (shift - 1) * (8 - index)) for index in range(8))
    recipe = halfframe.Recipe(("full",) * 8, sigmas=sigmas)
    message = "the recipe is for noise level .* but the schedule has .*; use the shift and the scheduler"
    with halfframe.enabled(t2v, recipe), pytest.raises(halfframe.StrategyError, match=message):
        t2v.generate("a", size=(32, 32), frame_num=9, sampling_steps=8, shift=12.0, offload_model=False)


def test_recipe_of_another_length(t2v: Any) -> None:
    message = "the recipe is for 6 steps, but the schedule has 8; ask for as many steps"
    with halfframe.enabled(t2v, halfframe.Recipe(("full",) * 6)), pytest.raises(halfframe.StrategyError, match=message):
        t2v.generate("a", size=(32, 32), frame_num=9, sampling_steps=8, shift=12.0, offload_model=False)


@pytest.mark.parametrize(
    "moves",
    [
        ("merge:2", "full", "reuse", "interleave:2+cond", "merge:3+delta", "full+delta", "full", "merge:2+delta"),
        ("interleave:3", "merge:2", "merge:2+cond", "reuse", "full", "full", "reuse", "interleave:2"),
        ("merge:2", "full", "reuse:1.72,-0.72", "full", "full+delta:1.5,-0.4,0.1", "full", "reuse:0.6,0.3", "full"),
    ],
)
def test_hosts_agree_on_a_recipe(moves: tuple[str, ...], tmp_path: Any) -> None:
    path = tmp_path / "recipe.json"
    sigmas = tuple(12 * (8 - index) / (8 + 11 * (8 - index)) for index in range(8))  # of shift 12
    halfframe.Recipe(moves, 6, sigmas).save(path)
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
