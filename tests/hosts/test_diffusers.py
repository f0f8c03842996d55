"""diffusers' unmodified ``WanPipeline`` and ``WanImageToVideoPipeline`` with halfframe on, against a plain loop."""

from __future__ import annotations

import contextlib
import copy
import importlib
import inspect
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from typing import Any

import diffusers
import pytest
import torch
from torch import Tensor

import halfframe
from halfframe.testing import tiny_diffusers_i2v, tiny_diffusers_t2v

from ..helpers_diffusers import PROMPT, SCHEDULERS, AtSwitch, Seen, half_frame_latents, picture, run, seeded, state
from .plain_loop import diffusers_parts, plain_loop

PIPES: dict[str, Callable[..., Any]] = {"t2v": tiny_diffusers_t2v, "i2v": tiny_diffusers_i2v}
EXPERTS = ("transformer", "transformer_2")


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> Iterator[None]:
    """Tensors this small gain nothing from two, and threads of the tests' own would contend for them."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture
def t2v() -> Any:
    return tiny_diffusers_t2v()


@pytest.fixture(params=PIPES)
def pipe(request: pytest.FixtureRequest) -> Any:
    return PIPES[request.param]()


def close(seen: Tensor, expected: Tensor) -> None:
    torch.testing.assert_close(seen, expected, rtol=0, atol=2e-5)  # the random experts amplify float32's rounding


STRATEGIES = ["self-duplicate", "merge"]


def halved_latents(pipe: Any, strategy: str) -> Tensor:
    """What `pipe` must make of `ARGS`: a reference loop's latents."""
    if strategy == "self-duplicate":
        return half_frame_latents(pipe)
    image = {"image": picture()} if pipe.transformer.config.in_channels == 36 else {}
    return plain_loop(diffusers_parts(pipe, [PROMPT], num_frames=17, steps=8, **image), strategy)


class Alternating(halfframe.Strategy):
    """Every other frame, even ones first, then odd ones, and so on: the computed frames change at every step."""

    name = "alternating"

    def move(self, step: halfframe.Step) -> halfframe.FrameMap | None:
        if step.expert == "low":
            return None
        kept = sorted({0, *range(step.index % 2, step.num_frames, 2)})
        return halfframe.FrameMap.select(kept, step.num_frames, between="hold", positions="contiguous")


# What is computed, and that it is the source's scheme.


@pytest.mark.parametrize("num_frames", [17, 21, 5])
@pytest.mark.parametrize("scheduler", ["unipc", "dpm++", "euler", "heun"])
@pytest.mark.parametrize("noise", ["full", "short"])
def test_latents_are_those_of_the_reference_loop(pipe: Any, num_frames: int, scheduler: str, noise: str) -> None:
    pipe.scheduler = SCHEDULERS[scheduler]()
    expected = half_frame_latents(pipe, num_frames=num_frames, short_noise=noise == "short", guidance=(3.0, 4.0))
    with halfframe.enabled(pipe, "self-duplicate", noise=noise) as enabled:  # type: ignore[arg-type]
        latents = run(pipe, num_frames=num_frames, guidance_scale=3.0, guidance_scale_2=4.0)
    close(latents, expected)
    assert enabled.report is not None
    assert enabled.report.host == "diffusers"
    assert enabled.report.video_frames == num_frames


def test_plain_run_is_the_reference_loop_without_halving(pipe: Any) -> None:
    """The reference loop is the host's own where nothing is halved; otherwise it would prove nothing."""
    close(run(pipe), half_frame_latents(pipe, half=False))


def test_stochastic_solver(t2v: Any) -> None:
    t2v.scheduler = SCHEDULERS["stochastic euler"]()
    torch.manual_seed(1)
    expected = half_frame_latents(t2v)
    torch.manual_seed(1)
    with halfframe.enabled(t2v, "self-duplicate"):
        close(run(t2v), expected)


@pytest.mark.parametrize(("num_frames", "kept", "total"), [(17, 3, 5), (21, 3, 6)])
def test_frames_that_each_expert_sees(pipe: Any, num_frames: int, kept: int, total: int) -> None:
    seen = Seen(pipe)
    with halfframe.enabled(pipe, "self-duplicate"):
        run(pipe, num_frames=num_frames)
    high = sum(name == "transformer" for name, _ in seen.calls)
    assert seen.latent_frames == [("transformer", kept)] * high + [("transformer_2", total)] * (16 - high)
    assert 0 < high < 16
    assert {shape[1] for _, shape in seen.calls} == {pipe.transformer.config.in_channels}


def test_condition_follows_the_kept_frames() -> None:
    pipe = tiny_diffusers_i2v()
    given: list[Tensor] = []
    handles = [
        getattr(pipe, name).patch_embedding.register_forward_pre_hook(lambda _, args: given.append(args[0][:, 16:]))
        for name in EXPERTS
    ]
    run(pipe)
    whole = given[0]
    given.clear()
    with halfframe.enabled(pipe, Alternating()):
        run(pipe)
    for handle in handles:
        handle.remove()
    assert torch.equal(given[0], whole[:, :, [0, 2, 4]])
    assert torch.equal(given[2], whole[:, :, [0, 1, 3]])
    assert torch.equal(given[-1], whole)


def test_last_image_is_always_shown() -> None:
    """Its latent frame is computed even where its position is a skipped one (6 latent frames: 0, 2, 4 and 5)."""
    pipe = tiny_diffusers_i2v()
    seen = Seen(pipe)
    with halfframe.enabled(pipe, "self-duplicate") as enabled:
        run(pipe, num_frames=21, last_image=picture(1))
    assert {shape[2] for name, shape in seen.calls if name == "transformer"} == {4}
    assert enabled.report is not None
    assert enabled.report.high is not None
    assert enabled.report.high.latent_frames == (4,)


def test_last_image_is_shown_beside_frames_that_change_from_step_to_step() -> None:
    """6 latent frames: 0, 2, 4 and 5 at one step, at the next 0, 1, 3 and 5."""
    pipe = tiny_diffusers_i2v()
    kept: list[Any] = []

    class Kept:
        @halfframe.hookimpl
        def halfframe_expert_call(self, call: halfframe.ExpertCall) -> None:
            kept.append(None if call.frame_map is None else call.frame_map.kept)

    with halfframe.enabled(pipe, "merge", plugins=[Kept()]):
        run(pipe, num_frames=21, last_image=picture(1))
    assert kept[:4] == [(0, 2, 4, 5)] * 2 + [(0, 1, 3, 5)] * 2
    assert kept[-1] is None


def test_last_image_frame_starts_from_its_own_noise() -> None:
    pipe = tiny_diffusers_i2v()
    given: list[Tensor] = []
    handle = pipe.transformer.patch_embedding.register_forward_pre_hook(lambda _, args: given.append(args[0][:, :16]))
    run(pipe, num_frames=21, last_image=picture(1))
    whole = given[0]
    given.clear()
    with halfframe.enabled(pipe, "self-duplicate"):
        run(pipe, num_frames=21, last_image=picture(1))
    handle.remove()
    assert torch.equal(given[0], whole[:, :, [0, 2, 4, 5]])


def test_report(t2v: Any) -> None:
    with halfframe.enabled(t2v, "merge") as enabled:
        run(t2v)
    report = enabled.report
    assert report is not None
    assert report.high is not None
    assert report.low is not None
    assert (report.high.passes, report.high.latent_frames, report.high.sequence_lengths) == (12, (3,), (18,))
    assert (report.low.passes, report.low.latent_frames, report.low.sequence_lengths) == (4, (5,), (30,))
    assert report.high.predicted_seconds is not None


# The arguments of the call.

MATRIX: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "no guidance": ({"guidance_scale": 1.0}, {"guidance": (1.0, 1.0)}),
    "two scales": ({"guidance_scale": 3.0, "guidance_scale_2": 2.0}, {"guidance": (3.0, 2.0)}),
    "batch": (
        {"prompt": [PROMPT, "a cat"], "negative_prompt": ["blurry"] * 2},
        {"prompts": [PROMPT, "a cat"]},
    ),
    "videos per prompt": ({"num_videos_per_prompt": 2}, {"prompts": [PROMPT, PROMPT]}),
    "generator per clip": (
        {"num_videos_per_prompt": 2, "generator": lambda: [seeded(1), seeded(2)]},
        {
            "prompts": [PROMPT, PROMPT],
            "latents": lambda: torch.cat([torch.randn(1, 16, 5, 4, 6, generator=seeded(n)) for n in (1, 2)]),
        },
    ),
    "latents": (
        {"latents": lambda: torch.randn(1, 16, 5, 4, 6, generator=seeded(3))},
        {"latents": lambda: torch.randn(1, 16, 5, 4, 6, generator=seeded(3))},
    ),
}


def made(arguments: dict[str, Any]) -> dict[str, Any]:
    return {name: value() if callable(value) else value for name, value in arguments.items()}


@pytest.mark.parametrize("case", MATRIX)
def test_arguments(t2v: Any, case: str) -> None:
    arguments, expected = MATRIX[case]
    plain = run(t2v, **made(arguments))
    with halfframe.enabled(t2v, "self-duplicate") as enabled:
        latents = run(t2v, **made(arguments))
    close(latents, half_frame_latents(t2v, **made(expected)))
    close(plain, half_frame_latents(t2v, half=False, **made(expected)))
    assert enabled.report is not None
    assert enabled.report.high is not None
    assert enabled.report.high.passes == (6 if case == "no guidance" else 12)


def test_global_random_state(pipe: Any) -> None:
    """Without a generator the host draws from the global one; afterwards that is where a plain run leaves it."""
    torch.manual_seed(5)
    run(pipe, generator=None)
    after_plain = torch.rand(1)
    torch.manual_seed(5)
    with halfframe.enabled(pipe):
        latents = run(pipe, generator=None)
    assert torch.equal(torch.rand(1), after_plain)
    with halfframe.enabled(pipe):
        assert torch.equal(run(pipe, generator=seeded(5)), latents)


def test_given_latents_with_short_noise_are_their_kept_frames(t2v: Any) -> None:
    given = torch.randn(1, 16, 5, 4, 6, generator=seeded(3))
    before = given.clone()
    with halfframe.enabled(t2v, "self-duplicate", noise="short"):
        latents = run(t2v, latents=given)
    assert torch.equal(given, before)
    close(latents, half_frame_latents(t2v, latents=given))


@pytest.mark.parametrize("given", [False, True])
@pytest.mark.parametrize("why", ["one latent frame", "no high-noise step"])
def test_a_run_in_which_nothing_is_halved_is_the_plain_one(pipe: Any, why: str, given: bool) -> None:
    pipe.register_to_config(boundary_ratio=0.9 if why == "one latent frame" else 1.5)
    arguments: dict[str, Any] = {"num_frames": 1 if why == "one latent frame" else 17}
    if given:
        arguments["latents"] = torch.randn(1, 16, (arguments["num_frames"] - 1) // 4 + 1, 4, 6, generator=seeded(3))
    plain = run(pipe, **arguments)
    with halfframe.enabled(pipe), pytest.warns(halfframe.HalfframeWarning, match="nothing was skipped"):
        assert torch.equal(run(pipe, **arguments), plain)


@pytest.mark.parametrize("output_type", ["np", "pt"])
def test_video(t2v: Any, output_type: str) -> None:
    with halfframe.enabled(t2v):
        video = run(t2v, output_type=output_type)
        (same,) = t2v(
            PROMPT, "blurry", 32, 48, 17, 8, generator=seeded(), output_type=output_type, max_sequence_length=8,
            return_dict=False,
        )  # fmt: skip
    assert video.shape == ((1, 17, 32, 48, 3) if output_type == "np" else (1, 17, 3, 32, 48))
    assert (video == same).all()


def test_transformer_of_lower_precision_than_the_latents(pipe: Any) -> None:
    for name in EXPERTS:
        getattr(pipe, name).to(torch.bfloat16)
    with halfframe.enabled(pipe, "self-duplicate"):
        latents = run(pipe)
    expected = half_frame_latents(pipe)
    assert latents.dtype == expected.dtype == torch.float32
    close(latents, expected)


@pytest.mark.parametrize("truncate", [(3, 2), (0, 6), (8, 0)])
@pytest.mark.parametrize("strategy", ["self-duplicate", None])
@pytest.mark.parametrize("mode", ["conditional", "delta"])
def test_truncated_guidance(pipe: Any, strategy: str | None, truncate: tuple[int, int], mode: Any) -> None:
    reuse = mode == "delta"
    expected = half_frame_latents(pipe, half=strategy is not None, truncate=truncate, reuse_delta=reuse)
    seen = Seen(pipe)
    last, last_high = truncate
    with halfframe.enabled(
        pipe, strategy, guidance=halfframe.Guidance(skip_last=last, skip_last_high=last_high, mode=mode)
    ) as enabled:
        # c - (c - d) is d up to rounding, which the random experts amplify from step to step.
        torch.testing.assert_close(run(pipe), expected, rtol=0, atol=1e-3 if reuse else 1e-5)
    highs = int((pipe.scheduler.timesteps >= pipe.config.boundary_ratio * 1000).sum())
    skipped = sum(step >= 8 - last or highs - last_high <= step < highs for step in range(8))
    assert len(seen.calls) == 16 - skipped
    assert enabled.report is not None
    assert enabled.report.guidance_truncated
    assert f"{skipped} forward passes skipped" in enabled.report.summary()


@pytest.mark.parametrize("every", [2, 3])
@pytest.mark.parametrize("truncate", [(0, 0), (1, 2)])
@pytest.mark.parametrize("strategy", ["self-duplicate", None])
def test_guidance_computed_at_every_nth_step(
    pipe: Any, strategy: str | None, truncate: tuple[int, int], every: int
) -> None:
    expected = half_frame_latents(pipe, half=strategy is not None, truncate=truncate, every=every)
    seen = Seen(pipe)
    last, last_high = truncate
    with halfframe.enabled(
        pipe, strategy, guidance=halfframe.Guidance(skip_last=last, skip_last_high=last_high, every=every)
    ) as enabled:
        torch.testing.assert_close(run(pipe), expected, rtol=0, atol=1e-3)
    highs = int((pipe.scheduler.timesteps >= pipe.config.boundary_ratio * 1000).sum())
    truncated = [step for step in range(8) if step >= 8 - last or highs - last_high <= step < highs]
    between = [step for step in range(8) if (step if step < highs else step - highs) % every]
    skipped = len({*truncated, *between})
    assert len(seen.calls) == 16 - skipped
    assert enabled.report is not None
    assert enabled.report.guidance_truncated
    assert f"{skipped} forward passes skipped" in enabled.report.summary()


@pytest.mark.parametrize("name", list(SCHEDULERS))
def test_guidance_at_every_second_step_with_every_scheduler(t2v: Any, name: str) -> None:
    t2v.scheduler = SCHEDULERS[name]()
    torch.manual_seed(11)  # a stochastic scheduler draws from the global generator
    expected = half_frame_latents(t2v, every=2)
    torch.manual_seed(11)
    with halfframe.enabled(t2v, "self-duplicate", guidance=halfframe.Guidance(every=2)):
        torch.testing.assert_close(run(t2v), expected, rtol=0, atol=1e-3)


def test_without_guidance_there_is_no_forward_to_leave_out(t2v: Any) -> None:
    plain = run(t2v, guidance_scale=1.0)
    with (
        halfframe.enabled(t2v, None, guidance=halfframe.Guidance(every=2)) as enabled,
        pytest.warns(halfframe.HalfframeWarning, match="no unconditional pass was skipped: there was none to skip"),
    ):
        assert torch.equal(run(t2v, guidance_scale=1.0), plain)
    assert enabled.report is not None
    assert not enabled.report.guidance_truncated


# Callbacks and interrupts.


@pytest.mark.parametrize("last", [0, 2, 5, 6])
def test_interrupt(t2v: Any, last: int) -> None:
    def stop(pipe: Any, step: int, _: Any, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
        pipe._interrupt = step >= last
        return tensors

    with halfframe.enabled(t2v, "self-duplicate") as enabled:
        latents = run(t2v, callback_on_step_end=stop)
    assert latents.shape == (1, 16, 5, 4, 6)
    report = enabled.report
    assert report is not None
    assert report.high is not None
    assert report.high.passes + (report.low.passes if report.low else 0) == 2 * (last + 1)
    with halfframe.enabled(t2v, "self-duplicate"):
        close(run(t2v), half_frame_latents(t2v))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("at", range(8))
def test_callback_that_replaces_the_latents(t2v: Any, at: int, dtype: torch.dtype) -> None:
    for name in EXPERTS:
        getattr(t2v, name).to(dtype)
    other = torch.randn(1, 16, 5, 4, 6, generator=seeded(9))

    def replace(_: Any, step: int, __: Any, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
        return {"latents": tensors["latents"] * 0.5 + other} if step == at else tensors

    def edit(step: int, latents: Tensor, halved: bool) -> Tensor:
        return latents * 0.5 + (other[:, :, ::2] if halved else other) if step == at else latents

    with halfframe.enabled(t2v, "self-duplicate"):
        latents = run(t2v, callback_on_step_end=replace)
    close(latents, half_frame_latents(t2v, edit=edit))


def test_callback_objects_keep_their_meaning(t2v: Any) -> None:
    """diffusers tells them from functions by their class, and lets them choose the tensors that they are given."""
    cutoff = diffusers.callbacks.SDCFGCutoffCallback(cutoff_step_ratio=None, cutoff_step_index=99)
    with halfframe.enabled(t2v, "self-duplicate"):
        close(run(t2v, callback_on_step_end=cutoff), half_frame_latents(t2v))


# Nothing is left behind.


@pytest.mark.parametrize("strategy", STRATEGIES)
@pytest.mark.parametrize("at", range(16))
def test_exception_at_any_expert_call(t2v: Any, at: int, strategy: str) -> None:
    plain, halved = run(t2v), halved_latents(t2v, strategy)
    before = state(t2v)
    calls = iter(range(99))

    def fail(*_: Any) -> None:
        if next(calls) == at:
            raise RuntimeError("injected")

    handles = [getattr(t2v, name).proj_out.register_forward_pre_hook(fail) for name in EXPERTS]
    with halfframe.enabled(t2v, strategy) as enabled:
        with pytest.raises(RuntimeError, match="injected"):
            run(t2v)
        assert enabled.reports == []
        again = run(t2v)
    for handle in handles:
        handle.remove()
    close(again, halved)
    assert state(t2v) == before
    assert torch.equal(run(t2v), plain)


@pytest.mark.parametrize("part", ["vae.encode", "vae.decode", "scheduler.set_timesteps", "text_encoder.forward"])
def test_exception_anywhere_else(part: str) -> None:
    pipe = tiny_diffusers_i2v()
    plain = run(pipe)

    def fail(*_: Any, **__: Any) -> Any:
        raise RuntimeError("injected")

    owner, _, name = part.partition(".")
    with halfframe.enabled(pipe), pytest.MonkeyPatch.context() as patch:
        patch.setattr(getattr(pipe, owner), name, fail)
        with pytest.raises(RuntimeError, match="injected"):
            run(pipe, output_type="np")
    assert torch.equal(run(pipe), plain)
    before = state(pipe)
    with halfframe.enabled(pipe):
        run(pipe)
    assert state(pipe) == before


def test_pipe_is_as_before(pipe: Any) -> None:
    plain, before = run(pipe), state(pipe)
    cls = type(pipe)
    with halfframe.enabled(pipe):
        assert isinstance(pipe, cls)
        assert (type(pipe).__name__, type(pipe).__module__, type(pipe).__qualname__) == (
            cls.__name__,
            cls.__module__,
            cls.__qualname__,
        )
        run(pipe)
        attached = state(pipe)
    assert {**attached, "class": cls} == before  # between runs only the class differs
    assert state(pipe) == before
    assert torch.equal(run(pipe), plain)


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_first_run_ever(t2v: Any, strategy: str) -> None:
    """Enabled before any plain run, so that nothing that the first run sets up is taken for granted."""
    with halfframe.enabled(t2v, strategy):
        close(run(t2v), halved_latents(tiny_diffusers_t2v(), strategy))
    assert torch.equal(run(t2v), run(tiny_diffusers_t2v()))


def test_wrong_arguments_fail_as_ever(t2v: Any) -> None:
    with halfframe.enabled(t2v) as enabled:
        with pytest.raises(TypeError, match="unexpected keyword"):
            run(t2v, nonsense=1)
        with pytest.raises(ValueError, match="list of generators"):
            run(t2v, generator=[seeded(1), seeded(2)])
        run(t2v)
    assert len(enabled.reports) == 1


def test_class_put_on_top_of_ours_stays_and_is_plain(t2v: Any, caplog: pytest.LogCaptureFixture) -> None:
    plain = run(t2v)
    with halfframe.enabled(t2v):
        theirs = type("Theirs", (type(t2v),), {})
        t2v.__class__ = theirs
    assert type(t2v) is theirs
    assert "was replaced while halfframe had patched it" in caplog.text
    assert torch.equal(run(t2v), plain)


def test_copy_of_an_enabled_pipe_is_plain(t2v: Any) -> None:
    plain = run(t2v)
    with halfframe.enabled(t2v):
        assert torch.equal(run(copy.copy(t2v)), plain)


# Pipelines that share modules, and threads.


def sibling(pipe: Any) -> Any:
    """Another pipeline on the same modules, with a scheduler of its own."""
    parts = {**pipe.components, "scheduler": copy.deepcopy(pipe.scheduler)}
    other = type(pipe)(**parts, boundary_ratio=pipe.config.boundary_ratio)
    other.set_progress_bar_config(disable=True)
    return other


def in_thread(function: Callable[[], Any]) -> Any:
    results: list[Any] = []
    thread = threading.Thread(target=lambda: results.append(function()))
    thread.start()
    thread.join()
    (result,) = results
    return result


def at_step(wanted: int, function: Callable[[], None]) -> Callable[..., dict[str, Tensor]]:
    def callback(_: Any, step: int, __: Any, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
        if step == wanted:
            function()
        return tensors

    return callback


def compiled_in_place(pipe: Any) -> None:
    torch._dynamo.reset()  # compiled code is counted per function, over all tests
    for name in EXPERTS:
        getattr(pipe, name).compile(backend="eager", fullgraph=True)


# An expert that is compiled as a whole must not be called from another thread while its positions are exchanged.
@pytest.mark.parametrize(
    ("step", "compiled", "strategy"),
    [(step, False, strategy) for step in (1, 6) for strategy in STRATEGIES] + [(1, True, "self-duplicate")],
)
def test_sibling_in_another_thread_in_the_middle_of_a_run(t2v: Any, step: int, compiled: bool, strategy: str) -> None:
    other = sibling(t2v)
    plain, halved = run(other), halved_latents(t2v, strategy)
    if compiled:
        compiled_in_place(t2v)
    run(t2v)
    before = state(t2v)
    seen: dict[str, Tensor] = {}

    def meanwhile() -> None:
        seen["plain"] = in_thread(lambda: run(other))
        with halfframe.enabled(other, strategy):
            seen["enabled"] = in_thread(lambda: run(other))
            seen["enabled, same thread"] = run(other)

    with halfframe.enabled(t2v, strategy):
        close(run(t2v, callback_on_step_end=at_step(step, meanwhile)), halved)
    assert torch.equal(seen["plain"], plain)
    close(seen["enabled"], halved)
    close(seen["enabled, same thread"], halved)
    assert state(t2v) == before
    assert torch.equal(run(t2v), plain)


@pytest.mark.parametrize(
    ("compiled", "strategy"), [*((False, strategy) for strategy in STRATEGIES), (True, "self-duplicate")]
)
def test_runs_that_end_in_the_order_in_which_they_began(t2v: Any, compiled: bool, strategy: str) -> None:
    """The patches of two runs on the same modules come off in another order than the reverse."""
    other = sibling(t2v)
    plain, halved = run(t2v), halved_latents(t2v, strategy)
    if compiled:
        compiled_in_place(t2v)
    run(t2v)
    before = state(t2v)
    first_is_inside, second_is_inside, first_is_done = threading.Event(), threading.Event(), threading.Event()
    seen: dict[str, Tensor] = {}

    def first() -> None:
        def meet() -> None:
            first_is_inside.set()
            assert second_is_inside.wait(60)

        with halfframe.enabled(t2v, strategy):
            seen["first"] = run(t2v, callback_on_step_end=at_step(1, meet))
        first_is_done.set()

    def second() -> None:
        def meet() -> None:
            second_is_inside.set()
            assert first_is_done.wait(60)

        assert first_is_inside.wait(60)
        with halfframe.enabled(other, strategy):
            seen["second"] = run(other, callback_on_step_end=at_step(1, meet))

    threads = [threading.Thread(target=target) for target in (first, second)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    close(seen["first"], halved)
    close(seen["second"], halved)
    assert state(t2v) == before
    assert torch.equal(run(t2v), plain)


def test_second_run_of_the_same_pipe_at_the_same_time(t2v: Any) -> None:
    def again() -> None:
        with pytest.raises(halfframe.HalfframeError, match="is generating already"):
            run(t2v)

    with halfframe.enabled(t2v, "self-duplicate"):
        close(run(t2v, callback_on_step_end=at_step(1, again)), half_frame_latents(t2v))


# torch.compile, offloading, caches.


def compiled_by_wrapping(pipe: Any) -> None:
    for name in EXPERTS:
        setattr(pipe, name, torch.compile(getattr(pipe, name), backend="eager", fullgraph=True))


def compiled_by_block(pipe: Any) -> None:
    for name in EXPERTS:
        getattr(pipe, name).compile_repeated_blocks(backend="eager", fullgraph=True)


@pytest.mark.parametrize("how", [compiled_by_wrapping, compiled_in_place, compiled_by_block])
def test_compiled_experts(t2v: Any, how: Callable[[Any], None]) -> None:
    plain, halved = run(t2v), half_frame_latents(t2v)
    torch._dynamo.reset()
    how(t2v)
    close(run(t2v), plain)  # compiled for whole clips first
    before = state(t2v)
    with halfframe.enabled(t2v, "self-duplicate") as enabled:
        close(run(t2v), halved)
        close(run(t2v), halved)
    assert [report.high.latent_frames for report in enabled.reports if report.high] == [(3,), (3,)]
    assert state(t2v) == before
    close(run(t2v), plain)


@pytest.mark.parametrize("how", [compiled_by_wrapping, compiled_in_place, compiled_by_block])
def test_compiled_experts_see_true_positions(t2v: Any, how: Callable[[Any], None]) -> None:
    plain, expected = run(t2v), halved_latents(t2v, "interleave")
    with halfframe.enabled(t2v, "interleave", positions="contiguous"):
        assert not torch.equal(run(t2v), expected)
    torch._dynamo.reset()
    how(t2v)
    close(run(t2v), plain)
    before = state(t2v)
    with halfframe.enabled(t2v, "interleave"):
        close(run(t2v), expected)
        close(run(t2v), expected)
    assert state(t2v) == before
    close(run(t2v), plain)


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_accelerate_offload(pipe: Any, strategy: str) -> None:
    accelerate = pytest.importorskip("accelerate")
    halved = halved_latents(pipe, strategy)
    for name in EXPERTS:
        accelerate.cpu_offload(getattr(pipe, name), execution_device=torch.device("cpu"))
    plain = run(pipe)
    before = state(pipe).keys()
    with halfframe.enabled(pipe, strategy):
        close(run(pipe), halved)
    assert state(pipe).keys() == before
    assert torch.equal(run(pipe), plain)


@pytest.mark.parametrize("strategy", STRATEGIES)
@pytest.mark.parametrize("offload_type", ["leaf_level", "block_level"])
def test_group_offload(t2v: Any, offload_type: str, strategy: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """From CPU to CPU: the hooks and the moves are real; diffusers only insists that there is an accelerator."""
    if torch.accelerator.current_accelerator() is None:
        monkeypatch.setattr("torch.accelerator.current_accelerator", lambda: torch.device("cpu"))
    hooks = pytest.importorskip("diffusers.hooks")
    halved = halved_latents(t2v, strategy)
    for name in EXPERTS:
        hooks.apply_group_offloading(
            getattr(t2v, name),
            onload_device=torch.device("cpu"),
            offload_type=offload_type,
            num_blocks_per_group=1 if offload_type == "block_level" else None,
        )
    plain = run(t2v)
    with halfframe.enabled(t2v, strategy):
        close(run(t2v), halved)
    assert torch.equal(run(t2v), plain)


CACHES: dict[str, Callable[[Any, Any, str], Any]] = {
    "FirstBlockCacheConfig": lambda config, pipe, name: config(threshold=0.3),
    "PyramidAttentionBroadcastConfig": lambda config, pipe, name: config(
        spatial_attention_block_skip_range=3,
        spatial_attention_timestep_skip_range=(0, 1001),
        cross_attention_block_skip_range=2,
        cross_attention_timestep_skip_range=(0, 1001),
        spatial_attention_block_identifiers=("blocks",),
        cross_attention_block_identifiers=("blocks",),
        current_timestep_callback=lambda: 500,
    ),
    "FasterCacheConfig": lambda config, pipe, name: config(
        spatial_attention_block_skip_range=2,
        # Each expert's first step must lie outside, or there is nothing yet to reuse; so it is without halfframe too.
        spatial_attention_timestep_skip_range=(0, 990 if name == "transformer" else 790),
        spatial_attention_block_identifiers=("blocks.*attn1",),
        temporal_attention_block_identifiers=(),
        attention_weight_callback=lambda _: 0.5,
        is_guidance_distilled=True,
        current_timestep_callback=lambda: pipe.current_timestep,
    ),
    "MagCacheConfig": lambda config, pipe, name: config(
        threshold=0.5, max_skip_steps=2, retention_ratio=0.2, num_inference_steps=6, mag_ratios=[1.0] * 6
    ),
    "TaylorSeerCacheConfig": lambda config, pipe, name: config(
        cache_interval=2,
        disable_cache_before_step=1,
        taylor_factors_dtype=torch.float32,
        cache_identifiers=[r"blocks\.\d+\.attn\d"],
    ),
    "SeaCacheConfig": lambda config, pipe, name: config(threshold=0.5),
}


@pytest.fixture(params=CACHES)
def cached(request: pytest.FixtureRequest) -> Any:
    """A pipeline with one of diffusers' caches on, which really leaves something out."""
    config = getattr(importlib.import_module("diffusers.hooks"), request.param, None)
    if config is None:
        pytest.skip(f"this diffusers has no {request.param}")
    pipe = tiny_diffusers_t2v()
    uncached = run(pipe)
    for name in EXPERTS:
        try:
            getattr(pipe, name).enable_cache(CACHES[request.param](config, pipe, name))
        except ValueError as error:
            pytest.skip(f"this diffusers has no {request.param} for Wan: {error}")
    assert not torch.equal(run(pipe), uncached), "this cache's settings leave nothing out"
    return pipe


def without_caches(pipe: Any) -> Any:
    """The same pipeline without caches."""
    return tiny_diffusers_t2v()


def reset(pipe: Any) -> None:
    for name in EXPERTS:
        getattr(pipe, name)._reset_stateful_cache()


def test_cache_works_on_half_clips_too(cached: Any) -> None:
    plain = run(cached)
    reset(cached)
    expected = half_frame_latents(cached)
    reset(cached)
    assert not torch.equal(expected, half_frame_latents(without_caches(cached)))
    with halfframe.enabled(cached, "self-duplicate"):
        close(run(cached), expected)
        close(run(cached), expected)
    assert torch.equal(run(cached), plain)


def test_cache_never_serves_other_frames_than_it_was_made_from(cached: Any) -> None:
    """The high-noise expert's frames change at every step, so there its cache may not be used at all."""
    if "FasterCache" in type(cached.transformer._cache_config).__name__:
        plain = run(cached)
        message = r"has FasterCache on, .* change from step to step, .* keeps the same frames, such as 'self-duplicate'"
        window = {"strategy": "interpolate", "until": 2}
        for options in ({"strategy": Alternating()}, {}, {"stride": 3}, window):
            with halfframe.enabled(cached, **options), pytest.raises(halfframe.HalfframeError, match=message):
                run(cached, guidance_scale=1.0)
            assert torch.equal(run(cached), plain)
        with halfframe.enabled(cached), pytest.raises(halfframe.HalfframeError, match=message):
            run(cached, guidance_scale=1.0, num_frames=9)  # the same frames at every step, in other means
        return
    for strategy in (Alternating(), "merge"):
        at_switch = AtSwitch()
        for pipe in (without_caches(cached), cached):
            with halfframe.enabled(pipe, strategy, plugins=[at_switch]):
                # Without guidance, because attention broadcast also takes one prompt's output for the other's.
                run(pipe, guidance_scale=1.0)
        assert torch.equal(*at_switch.latents)


@pytest.mark.parametrize("name", ["FirstBlockCacheConfig", "PyramidAttentionBroadcastConfig"])
def test_cache_that_comes_in_the_middle_of_a_run(name: str) -> None:
    pipe, at_switch = tiny_diffusers_t2v(), AtSwitch()

    def turn_on() -> None:
        for expert in EXPERTS:
            config = getattr(importlib.import_module("diffusers.hooks"), name)
            getattr(pipe, expert).enable_cache(CACHES[name](config, pipe, expert))

    with halfframe.enabled(pipe, "merge", plugins=[at_switch]):
        plain = run(pipe, guidance_scale=1.0)
        assert not torch.equal(run(pipe, guidance_scale=1.0, callback_on_step_end=at_step(0, turn_on)), plain)
    assert torch.equal(*at_switch.latents)


def test_cache_after_an_exception(cached: Any) -> None:
    plain = run(cached)

    def fail() -> None:
        raise RuntimeError("injected")

    with halfframe.enabled(cached, "self-duplicate"), pytest.raises(RuntimeError, match="injected"):
        run(cached, callback_on_step_end=at_step(3, fail))
    assert torch.equal(run(cached), plain)
    with pytest.raises(RuntimeError, match="injected"):
        run(cached, callback_on_step_end=at_step(3, fail))
    reset(cached)
    expected = half_frame_latents(cached)
    with contextlib.suppress(RuntimeError):
        run(cached, callback_on_step_end=at_step(3, fail))  # a plain run that leaves its caches behind
    with halfframe.enabled(cached, "self-duplicate"):
        close(run(cached), expected)


# Refusals.


def refused(pipe: Any) -> str:
    with pytest.raises(halfframe.UnsupportedPipelineError) as error, halfframe.enabled(pipe):
        pass
    return str(error.value)


@pytest.mark.parametrize("name", EXPERTS)
def test_expert_missing(name: str) -> None:
    assert refused(tiny_diffusers_t2v(**{name: None})) == (
        f"WanPipeline cannot be made faster: it has no {name}, so there is no expert switch at which the clip could be "
        "brought back to full length. Use T2V-A14B or I2V-A14B, with both transformers loaded and "
        "boundary_ratio set (0.875 for T2V, 0.9 for I2V)."
    )


def test_boundary_missing(pipe: Any) -> None:
    pipe.register_to_config(boundary_ratio=None)
    assert "it has no boundary_ratio, so there is no expert switch" in refused(pipe)


def test_one_module_as_both_experts(t2v: Any) -> None:
    t2v.transformer_2 = torch.compile(t2v.transformer, backend="eager")
    assert refused(t2v) == (
        "WanPipeline cannot be made faster: one module serves as both experts, so there is no expert switch. Load both "
        "transformers of the A14B model."
    )


def test_timesteps_per_token(t2v: Any) -> None:
    t2v.register_to_config(expand_timesteps=True)
    assert refused(t2v) == (
        "WanPipeline cannot be made faster: its config has expand_timesteps, as TI2V-5B, where one transformer serves "
        "every timestep, so there is no expert switch at which the clip could be brought back to full length. Use "
        "T2V-A14B or I2V-A14B."
    )


def test_control_inputs() -> None:
    if "transformer_2" not in inspect.signature(diffusers.WanVACEPipeline).parameters:
        pytest.skip("this diffusers has no WanVACEPipeline with two experts")
    model = diffusers.WanVACETransformer3DModel
    sizes = {"num_attention_heads": 2, "attention_head_dim": 24, "ffn_dim": 96, "num_layers": 1, "vace_layers": [0]}
    experts = {name: model(**sizes, vace_in_channels=96) for name in EXPERTS}
    parts = {name: part for name, part in tiny_diffusers_t2v().components.items() if name not in EXPERTS}
    pipe = diffusers.WanVACEPipeline(**parts, **experts, boundary_ratio=0.875)
    assert "its transformer also takes control_hidden_states" in refused(pipe)
    assert "Use WanPipeline or WanImageToVideoPipeline." in refused(pipe)


def test_patches_in_time(t2v: Any) -> None:
    t2v.transformer.register_to_config(patch_size=(2, 2, 2))
    assert "its transformer has patch_size (2, 2, 2), which spans several latent frames" in refused(t2v)


def test_not_a_module(t2v: Any) -> None:
    class Engine:
        config = t2v.transformer_2.config

    t2v.transformer_2 = Engine()
    assert "its transformer_2 is a Engine; needed: a torch.nn.Module" in refused(t2v)


def test_other_pipelines_are_not_recognised(t2v: Any) -> None:
    parts = {name: part for name, part in t2v.components.items() if name != "transformer_2"}
    pipe = diffusers.WanVideoToVideoPipeline(**parts)
    message = refused(pipe)
    assert "WanVideoToVideoPipeline is no pipeline that halfframe knows" in message
    assert "a diffusers WanPipeline or WanImageToVideoPipeline" in message


def test_parts_exchanged_within_the_block(t2v: Any) -> None:
    with halfframe.enabled(t2v, "self-duplicate"):
        expert, t2v.transformer_2 = t2v.transformer_2, t2v.transformer
        with pytest.raises(halfframe.UnsupportedPipelineError, match="one module serves as both experts"):
            run(t2v)
        t2v.transformer_2 = expert
        t2v.scheduler = SCHEDULERS["euler"]()
        close(run(t2v), half_frame_latents(t2v))


def test_per_frame_input_found_at_run_time(t2v: Any) -> None:
    """A newer version may hand its experts another tensor that goes with the frames; it must not pass unnoticed."""
    model = t2v.transformer

    class WithDepth(type(model)):  # type: ignore[misc]
        def __call__(self, **kwargs: Any) -> Any:
            return super().__call__(**kwargs, depth=torch.zeros(1, 1, 5, 4, 6))

        def forward(self, depth: Tensor, **kwargs: Any) -> Any:
            return super().forward(**kwargs)

    model.__class__ = WithDepth  # so that its own `forward` is the one that is given more than the host gives
    run(t2v)
    message = r"expert was given 'depth', shape \(1, 1, 5, 4, 6\), which goes with the frames"
    with halfframe.enabled(t2v), pytest.raises(halfframe.HalfframeError, match=message):
        run(t2v)


def test_heun_cannot_start_afresh_in_the_middle_of_a_step(t2v: Any) -> None:
    t2v.scheduler = SCHEDULERS["heun"]()

    class Rewrites:
        @halfframe.hookimpl
        def halfframe_boundary(self, boundary: halfframe.Boundary) -> None:
            boundary.latents = boundary.latents + 1

    with (
        halfframe.enabled(t2v, plugins=[Rewrites()]),
        pytest.raises(halfframe.HalfframeError, match="FlowMatchHeunDiscreteScheduler cannot start afresh"),
    ):
        run(t2v)


def test_library_does_not_import_diffusers() -> None:
    code = "import sys, halfframe; sys.exit('diffusers' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_doctor() -> None:
    found = {host.pipeline: host for host in halfframe.doctor().hosts}
    for name in ("diffusers.WanPipeline", "diffusers.WanImageToVideoPipeline"):
        assert found[name].verdict == "served"
        assert found[name].version == diffusers.__version__
        assert all(found[name].seams.values())
    assert found["diffusers.WanVACEPipeline"].verdict in (
        "refused: one transformer serves every timestep, so there is no expert switch",
        "refused: its transformers also take control_hidden_states",
    )
