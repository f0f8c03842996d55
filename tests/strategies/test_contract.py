"""What every installed strategy keeps to, whoever wrote it: seen from outside, on real pipelines.

A pipeline is run with a strategy, and watched where its experts are called and after every step. What an expert is
given of the clip is read off by having the clip be a code, one number of its own for each frame.
"""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any
from unittest import mock

import diffusers
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

import halfframe
from halfframe.testing import WanSizes, tiny_diffusers_t2v, tiny_wan_t2v

NAMES = [info.name for info in halfframe.strategies()]
EVERY = pytest.mark.parametrize("name", NAMES)
STEPS = 4  # three of them are the high-noise expert's
HIGH = 3
NOTHING = "ignore:halfframe. nothing was skipped"  # clips this short may have no frame to leave out


@functools.cache
def diffusers_pipe() -> Any:
    return tiny_diffusers_t2v(sizes=WanSizes(num_layers=1))


@functools.cache
def official_pipe() -> Any:
    return tiny_wan_t2v(sizes=WanSizes(num_layers=1))


@pytest.fixture(params=["float32", "bfloat16"])
def dtype(request: pytest.FixtureRequest) -> Iterator[torch.dtype]:
    """Of the experts' weights."""
    pipe, dtype = diffusers_pipe(), getattr(torch, request.param)
    experts = (pipe.transformer, pipe.transformer_2)
    kept = [{name: p.detach().clone() for name, p in expert.named_parameters()} for expert in experts]
    for expert in experts:
        expert.to(dtype)
    yield dtype
    for expert, weights in zip(experts, kept, strict=True):
        expert.to(torch.float32)
        expert.load_state_dict(weights)


def seeded(seed: int = 7) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def noise(frames: int, clips: int = 1, seed: int = 3) -> Tensor:
    return torch.randn(clips, 16, frames, 2, 4, generator=seeded(seed))


@dataclass
class Pass:
    """One forward pass: what an expert was given, at which timestep, and what it said."""

    expert: str
    latents: Tensor
    timestep: float
    velocity: Tensor


@dataclass
class Seen:
    """What a run showed: forward passes, and the latents that were carried after each step."""

    passes: list[Pass] = field(default_factory=list)
    carried: list[Tensor] = field(default_factory=list)
    touched: list[str] = field(default_factory=list)
    _watched: list[tuple[str, Tensor, Tensor]] = field(default_factory=list)

    def watch(self, what: str, tensor: Tensor) -> None:
        self._watched.append((what, tensor, tensor.clone()))

    def settle(self) -> None:
        self.touched += [what for what, tensor, before in self._watched if not torch.equal(tensor, before)]
        self._watched.clear()


@contextlib.contextmanager
def watching(pipe: Any) -> Iterator[Seen]:
    seen, handles = Seen(), []
    for name in ("transformer", "transformer_2"):

        def after(_: Any, __: Any, given: dict[str, Any], output: Any, name: str = name) -> None:
            latents, (velocity, *_) = given["hidden_states"], output
            seen.passes.append(Pass(name, latents.clone(), float(given["timestep"].flatten()[0]), velocity.clone()))
            seen.watch("an expert's input", latents)
            seen.watch("an expert's output", velocity)

        handles.append(_around(getattr(pipe, name), after))
    yield seen
    for handle in handles:
        handle()
    seen.settle()


def _around(module: Any, after: Any) -> Any:
    """Call `after` with what really reaches the class's own forward; a hook on the module would see the whole clip."""
    cls = type(module)

    class Watched(cls):  # type: ignore[misc]
        def forward(self, *args: Any, **kwargs: Any) -> Any:
            output = cls.forward(self, *args, **kwargs)
            after(self, args, kwargs, output)
            return output

    for name in ("__name__", "__qualname__", "__module__"):
        setattr(Watched, name, getattr(cls, name))
    functools.update_wrapper(Watched.forward, cls.forward)
    module.__class__ = Watched
    return lambda: setattr(module, "__class__", cls)


def sample(
    frames: int,
    *,
    seen: Seen | None = None,
    replace: Tensor | None = None,
    guidance: float = 3.0,
    prompts: tuple[str, ...] = ("a kite",),
    scheduler: Any = None,
    steps: int = STEPS,
    **arguments: Any,
) -> Tensor:
    """Final latents ``(B, 16, F, 2, 4)``; with `replace` the run goes on from those after every step."""
    pipe = diffusers_pipe()
    pipe.scheduler = scheduler or diffusers.UniPCMultistepScheduler(
        prediction_type="flow_prediction", use_flow_sigmas=True, flow_shift=12.0
    )

    def after_step(_: Any, __: int, ___: Any, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
        if seen is not None:
            seen.carried.append(tensors["latents"].clone())
            seen.watch("the carried latents", tensors["latents"])
        return tensors if replace is None else {"latents": replace.clone()}

    result: Tensor = pipe(
        prompt=list(prompts),
        negative_prompt=["blurry"] * len(prompts),
        height=16,
        width=32,
        num_frames=4 * frames - 3,
        num_inference_steps=steps,
        guidance_scale=guidance,
        max_sequence_length=8,
        output_type="latent",
        callback_on_step_end=after_step,
        **{"generator": seeded(), **arguments},
    ).frames
    return result


def halved(name: str, frames: int, options: dict[str, Any] | None = None, **arguments: Any) -> Tensor:
    with halfframe.enabled(diffusers_pipe(), name, **(options or {})):
        return sample(frames, **arguments)


def watched(name: str, frames: int, options: dict[str, Any] | None = None, **arguments: Any) -> tuple[Tensor, Seen]:
    with watching(diffusers_pipe()) as seen, halfframe.enabled(diffusers_pipe(), name, **(options or {})):
        latents = sample(frames, seen=seen, **arguments)
    return latents, seen


def takes(name: str, option: str) -> bool:
    """Whether the strategy has an option of that name that can be 2."""
    try:
        with halfframe.enabled(diffusers_pipe(), name, **{option: 2}):
            return True
    except halfframe.OptionError:
        return False


def test_the_built_in_strategies_are_among_them() -> None:
    assert {"self-duplicate", "previous-odd", "own-noise", "interpolate", "interleave", "merge"} <= set(NAMES)


# Every length of clip.


@pytest.mark.filterwarnings(NOTHING)
@pytest.mark.parametrize("frames", range(1, 32))
@EVERY
def test_any_length(name: str, frames: int) -> None:
    """Whole clips are carried throughout; the experts are given fewer frames before the switch, and all after it."""
    latents, seen = watched(name, frames, guidance=1.0)
    assert latents.shape == (1, 16, frames, 2, 4)
    assert (latents.dtype, latents.device) == (torch.float32, torch.device("cpu"))
    assert latents.isfinite().all()
    assert latents.is_contiguous()
    assert [carried.shape for carried in seen.carried] == [latents.shape] * STEPS
    high = [p.latents.shape[2] for p in seen.passes if p.expert == "transformer"]
    low = [p.latents.shape[2] for p in seen.passes if p.expert == "transformer_2"]
    assert (len(high), len(low)) == (HIGH, STEPS - HIGH)
    assert all(1 <= count <= frames for count in high)
    assert set(low) == {frames}
    if frames > 3:
        assert min(high) < frames
    assert seen.touched == []


@EVERY
def test_a_single_frame_is_a_plain_runs(name: str) -> None:
    with pytest.warns(halfframe.HalfframeWarning, match="nothing was skipped: the clip has 1 latent frame"):
        latents = halved(name, 1)
    assert torch.equal(latents, sample(1))


@pytest.mark.filterwarnings(NOTHING)
@pytest.mark.parametrize("frames", [1, 2, 3, 4, 5, 12, 13, 31])
@EVERY
def test_any_length_on_the_official_host(name: str, frames: int) -> None:
    pipe = official_pipe()
    latents: list[Tensor] = []
    counts: list[tuple[str, int]] = []
    handles = [
        getattr(pipe, expert).head.register_forward_pre_hook(
            lambda _, args, expert=expert: counts.append((expert, args[0].shape[1] // 2))
        )
        for expert in ("high_noise_model", "low_noise_model")
    ]
    with (
        halfframe.enabled(pipe, name),
        mock.patch.object(pipe.vae, "decode", lambda clips: latents.extend(clips) or [torch.zeros(3, 1, 16, 32)]),
    ):
        pipe.generate(
            "a kite", size=(32, 16), frame_num=4 * frames - 3, sampling_steps=STEPS, shift=12.0, seed=7,
            offload_model=False,
        )  # fmt: skip
    for handle in handles:
        handle.remove()
    assert latents[0].shape == (16, frames, 2, 4)
    assert latents[0].isfinite().all()
    assert len(counts) == 2 * STEPS
    assert {count for expert, count in counts if expert == "low_noise_model"} == {frames}
    if frames > 3:
        assert min(count for expert, count in counts if expert == "high_noise_model") < frames


# Nothing is left to chance, and nothing of the user's is touched.


@pytest.mark.parametrize("frames", [5, 8])
@EVERY
def test_same_seed_same_clip(name: str, frames: int) -> None:
    plain = sample(frames)
    with halfframe.enabled(diffusers_pipe(), name):
        first, other, again = sample(frames), sample(frames, generator=seeded(8)), sample(frames)
    assert torch.equal(first, again)
    assert torch.equal(halved(name, frames), first)
    assert not torch.equal(first, other)
    assert not torch.equal(first, plain)
    assert torch.equal(sample(frames), plain)


@EVERY
def test_generator_is_left_where_a_plain_run_leaves_it(name: str) -> None:
    ours, plain = seeded(), seeded()
    sample(6, generator=plain)
    halved(name, 6, generator=ours)
    assert torch.equal(ours.get_state(), plain.get_state())


@pytest.mark.parametrize("frames", [5, 8])
@EVERY
def test_latents_of_the_users_are_their_own(name: str, frames: int) -> None:
    given = noise(frames)
    before = given.clone()
    latents, seen = watched(name, frames, latents=given)
    assert seen.touched == []
    assert torch.equal(given, before)
    latents.zero_()
    assert torch.equal(given, before)


def test_allocation_by_a_hook_that_works_in_place() -> None:
    class Halves:
        @halfframe.hookimpl
        def halfframe_allocate(self, allocation: halfframe.Allocation) -> Tensor:
            return allocation.draw(allocation.shape).mul_(0.5)

    given = noise(5)
    before = given.clone()
    with halfframe.enabled(diffusers_pipe(), plugins=[Halves()]):
        latents = sample(5, latents=given)
    assert torch.equal(given, before)
    assert torch.equal(latents, halved(halfframe.DEFAULT_STRATEGY, 5, latents=before * 0.5))


@EVERY
def test_dtype(name: str, dtype: torch.dtype) -> None:
    plain = sample(8)
    latents, seen = watched(name, 8)
    assert (latents.dtype, latents.shape) == (plain.dtype, plain.shape)
    assert latents.isfinite().all()
    assert seen.touched == []
    assert {p.latents.dtype for p in seen.passes} == {dtype}


@pytest.mark.parametrize("frames", [5, 8])
@EVERY
def test_clips_of_a_batch_know_nothing_of_each_other(name: str, frames: int) -> None:
    prompts = ("a kite", "a cat on a mat")
    both = noise(frames, clips=2)
    together = halved(name, frames, prompts=prompts, latents=both)
    for clip, prompt in enumerate(prompts):
        alone = halved(name, frames, prompts=(prompt,), latents=both[clip : clip + 1])
        torch.testing.assert_close(together[clip : clip + 1], alone, rtol=0, atol=2e-5)


# What an expert is given: sums of frames, all at one noise level, in the order of time.


def code(frames: int) -> Tensor:
    """A clip whose frame f is 1 at place f and 0 elsewhere: sums of its frames are their weights, written out."""
    clip = torch.zeros(16, frames, 8)
    for frame in range(frames):
        clip[frame % 16, frame, frame // 16] = 1
    return clip.reshape(1, 16, frames, 2, 4)


def weights(given: Tensor, frames: int) -> Tensor:
    """``(K, F)``: those of the frames of `code` in what an expert was given of it."""
    flat = given[0].reshape(16, given.shape[2], 8)
    return torch.stack([flat[frame % 16, :, frame // 16] for frame in range(frames)], dim=1)


def given_at_each_step(name: str, frames: int, options: dict[str, Any] | None = None) -> list[tuple[str, Tensor]]:
    """``(expert, weights)`` per step; the unconditional pass is given what the conditional one is."""
    clip = code(frames)
    _, seen = watched(name, frames, options, latents=clip, replace=clip)
    for conditional, unconditional in zip(seen.passes[::2], seen.passes[1::2], strict=True):
        assert torch.equal(conditional.latents, unconditional.latents)
        assert conditional.timestep == unconditional.timestep
    return [(p.expert, weights(p.latents, frames)) for p in seen.passes[::2]]


def check_weights(expert: str, rows: Tensor, frames: int) -> None:
    assert (rows >= 0).all()
    torch.testing.assert_close(rows.sum(1), rows.sum(1)[:1].expand(len(rows)))
    squares = (rows**2).sum(1)
    torch.testing.assert_close(squares, squares[:1].expand(len(rows)))
    assert rows[0, 0] > 0, "the first frame was left out"
    centres = (rows * torch.arange(frames)).sum(1) / rows.sum(1)
    ahead = centres.diff()
    assert (ahead > 0).all() if expert == "transformer" else (ahead >= 0).all()  # the source repeats frames there


@pytest.mark.filterwarnings(NOTHING)
@pytest.mark.parametrize("frames", [2, 3, 4, 5, 8, 13, 31])
@EVERY
def test_first_frame_is_always_seen_and_time_runs_forward(name: str, frames: int) -> None:
    for expert, rows in given_at_each_step(name, frames):
        check_weights(expert, rows, frames)


@pytest.mark.filterwarnings(NOTHING)
@settings(deadline=None, max_examples=40)
@given(
    name=st.deferred(lambda: st.sampled_from([name for name in NAMES if takes(name, "stride")])),
    frames=st.integers(1, 31),
    stride=st.integers(1, 9),
    full_start=st.integers(0, 2),
    until=st.sampled_from(["switch", "end"]),
)
def test_strides(name: str, frames: int, stride: int, full_start: int, until: str) -> None:
    options = {"stride": stride, "full_start": full_start, "until": until}
    steps = given_at_each_step(name, frames, options)
    for index, (expert, rows) in enumerate(steps):
        check_weights("transformer", rows, frames)
        if index < full_start or (expert == "transformer_2" and until == "switch") or stride == 1:
            assert torch.equal(rows, torch.eye(frames))
        else:
            assert len(rows) <= -(-frames // stride) + 1


@pytest.mark.parametrize("frames", [2, 5, 8, 13])
@pytest.mark.parametrize("stride", [2, 3])
@pytest.mark.parametrize("name", ["interleave", "merge"])
def test_every_frame_has_its_turn(name: str, stride: int, frames: int) -> None:
    steps = given_at_each_step(name, frames, {"stride": stride})
    for first in range(HIGH - stride + 1):
        seen = sum(rows.sum(0) for _, rows in steps[first : first + stride])
        assert (seen > 0).all()  # type: ignore[union-attr]


# What an expert says is what the clip gets.


@pytest.mark.parametrize("frames", [4, 5, 8, 13])
@EVERY
def test_computed_frames_have_the_experts_velocity_and_the_others_nothing_wilder(name: str, frames: int) -> None:
    """Euler's step is ``x + (difference of sigma) v``, so the velocity of every frame can be read off it.

    What the others show, or else how they move, lies between what computed frames do.
    """
    clip = noise(frames)
    scheduler = diffusers.FlowMatchEulerDiscreteScheduler(shift=12.0)
    _, seen = watched(name, frames, latents=clip, replace=clip, guidance=1.0, scheduler=scheduler, steps=8)
    sigmas = scheduler.sigmas.tolist()
    high = sum(one.expert == "transformer" for one in seen.passes)
    assert high > 3
    for index in range(1, high):  # a strategy may choose what a run starts from, but then goes on from `clip`
        one, after = seen.passes[index], seen.carried[index]
        velocity = (after - clip) / (sigmas[index + 1] - sigmas[index])
        for k, given_frame in enumerate(one.latents.unbind(2)):
            for frame in range(frames):
                if torch.equal(given_frame, clip[:, :, frame]):
                    torch.testing.assert_close(velocity[:, :, frame], one.velocity[:, :, k], rtol=0, atol=1e-3)
        said = one.latents - one.timestep / 1000 * one.velocity
        shown = clip - sigmas[index] * velocity
        assert between(shown, said) or between(velocity, one.velocity)


def between(values: Tensor, bounds: Tensor, slack: float = 1e-3) -> bool:
    low, high = bounds.amin(2, keepdim=True) - slack, bounds.amax(2, keepdim=True) + slack
    return bool(((low <= values) & (values <= high)).all())
