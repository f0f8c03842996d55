"""Whatever happens inside a block, the pipeline is afterwards what it was, and other pipelines never notice."""

from __future__ import annotations

import copy
import gc
import pickle
import threading
import weakref
from contextlib import ExitStack
from typing import Any

import pytest
import torch
from torch import Tensor

import halfframe
from halfframe.testing import tiny_diffusers_t2v, tiny_wan_t2v

from ..helpers_diffusers import run as run_diffusers
from ..helpers_diffusers import state as state_of_diffusers
from .test_wan_t2v import PROMPT, generate, spy


def state(pipe: Any) -> dict[str, Any]:
    """Everything that may differ after a run: the pipe's attributes, its experts' attributes, hooks and weights."""
    found: dict[str, Any] = {f"pipe.{name}": id(value) for name, value in vars(pipe).items()}
    found["class"] = type(pipe)
    for name in ("high_noise_model", "low_noise_model"):
        model = getattr(pipe, name)
        for path, module in model.named_modules():
            for key, value in vars(module).items():
                found[f"{name}.{path}.{key}"] = repr(value) if isinstance(value, dict) else id(value)
        found[f"{name} weights"] = [parameter._version for parameter in model.parameters()]
    for key, value in vars(type(pipe)).items():
        found[f"class.{key}"] = id(value)
    for key, value in type(pipe).generate.__globals__.items():
        found[f"module.{key}"] = id(value)
    return found


class FailAt:
    """Raise at the n-th expert call of a run, from inside the model's forward."""

    def __init__(self, n: int) -> None:
        self.left = n

    def __call__(self, *_: Any) -> None:
        if self.left == 0:
            self.left = -1
            raise RuntimeError("injected")
        self.left -= 1


@pytest.mark.parametrize("n", range(16))
def test_exception_at_any_expert_call(t2v: Any, n: int) -> None:
    plain, before = generate(t2v), state(t2v)
    failure = FailAt(n)
    handles = [
        model.register_forward_pre_hook(failure, prepend=True) for model in (t2v.high_noise_model, t2v.low_noise_model)
    ]
    with halfframe.enabled(t2v) as run:
        with pytest.raises(RuntimeError, match="injected"):
            generate(t2v)
        assert run.reports == []
        after_failure = generate(t2v)  # the block is still good for another run
        assert len(run.reports) == 1
    for handle in handles:
        handle.remove()
    assert state(t2v) == before
    assert torch.equal(generate(t2v), plain)
    with halfframe.enabled(t2v):
        assert torch.equal(generate(t2v), after_failure)


@pytest.mark.parametrize("part", ["text_encoder", "vae.decode", "boundary hook", "call hook", "block"])
def test_exception_anywhere_else(t2v: Any, part: str) -> None:
    before, plain = state(t2v), generate(t2v)

    def fail(*_: Any, **__: Any) -> Any:
        raise RuntimeError("injected")

    class Plugin:
        @halfframe.hookimpl
        def halfframe_boundary(self, boundary: Any) -> None:
            if part == "boundary hook":
                fail()

        @halfframe.hookimpl
        def halfframe_expert_call(self, call: Any) -> None:
            if part == "call hook":
                fail()

    encoder, decode = t2v.text_encoder, t2v.vae.decode

    def block() -> None:
        with halfframe.enabled(t2v, plugins=[Plugin()]):
            if part == "text_encoder":
                t2v.text_encoder = fail
            if part == "vae.decode":
                t2v.vae.decode = fail
            generate(t2v)
            fail()

    with pytest.raises(RuntimeError, match="injected"):
        block()
    t2v.text_encoder, t2v.vae.decode = encoder, decode
    del t2v.vae.decode
    assert state(t2v) == before
    assert torch.equal(generate(t2v), plain)


def test_keyboard_interrupt_in_a_run(t2v: Any) -> None:
    before = state(t2v)

    def interrupt(*_: Any) -> None:
        raise KeyboardInterrupt

    handle = t2v.high_noise_model.register_forward_pre_hook(interrupt)
    with pytest.raises(KeyboardInterrupt), halfframe.enabled(t2v):
        generate(t2v)
    handle.remove()
    assert state(t2v) == before


def test_another_pipe_in_another_thread_runs_at_full_length() -> None:
    mine, other = tiny_wan_t2v(0), tiny_wan_t2v(1)
    plain = generate(other)
    seen: list[Any] = []
    spy(other.high_noise_model, seen)
    meet = threading.Barrier(2, timeout=60)
    results: list[Tensor] = []

    # Both runs are halted in their first expert call until the other one is there too.
    for model in (mine.high_noise_model, other.high_noise_model):
        waited = [False]

        def wait(*_: Any, waited: list[bool] = waited) -> None:
            if not waited[0]:
                waited[0] = True
                meet.wait()

        model.register_forward_pre_hook(wait)
    thread = threading.Thread(target=lambda: results.append(generate(other)))
    with halfframe.enabled(mine) as run:
        thread.start()
        generate(mine)
        thread.join()
    assert run.report is not None
    assert run.report.saved
    assert torch.equal(results[0], plain)
    assert {shape[1] for shape, _ in seen} == {5}


def test_second_concurrent_generate_is_refused(t2v: Any) -> None:
    started, go_on = threading.Event(), threading.Event()
    videos: list[Tensor] = []

    def pause(*_: Any) -> None:
        started.set()
        assert go_on.wait(60)

    handle = t2v.high_noise_model.register_forward_pre_hook(pause)
    with halfframe.enabled(t2v) as run:
        thread = threading.Thread(target=lambda: videos.append(generate(t2v)))
        thread.start()
        assert started.wait(60)
        with pytest.raises(halfframe.HalfframeError, match=r"WanT2V is generating already, in thread \d+; a pipeline"):
            generate(t2v)
        go_on.set()
        thread.join()
        assert torch.equal(videos[0], generate(t2v))
    handle.remove()
    assert len(run.reports) == 2


@pytest.mark.parametrize("how", ["leave", "disable"])
@pytest.mark.parametrize(
    ("make", "call", "state_of"),
    [(tiny_wan_t2v, generate, state), (tiny_diffusers_t2v, run_diffusers, state_of_diffusers)],
    ids=["official", "diffusers"],
)
def test_block_left_while_another_thread_generates(make: Any, call: Any, state_of: Any, how: str) -> None:
    """The run ends as it began, and undoes then what it patched; until then the pipeline cannot be enabled again."""
    pipe = make()
    plain, before = call(pipe), state_of(pipe)
    with halfframe.enabled(pipe):
        expected = call(pipe)
    started, left = threading.Event(), threading.Event()
    videos: list[Tensor] = []
    reports: list[Any] = []

    class Slow:
        @halfframe.hookimpl
        def halfframe_expert_call(self, call: halfframe.ExpertCall) -> None:
            if call.step.index == 2:
                started.set()
                assert left.wait(60)

        @halfframe.hookimpl
        def halfframe_report(self, report: Any) -> None:
            reports.append(report)

    thread = threading.Thread(target=lambda: videos.append(call(pipe)))
    run = halfframe.enable(pipe, plugins=[Slow()])
    thread.start()
    assert started.wait(60)
    warning = pytest.warns(halfframe.HalfframeWarning, match="that run ends as it began, and then the pipeline is as")
    with warning as seen:
        halfframe.disable(pipe) if how == "disable" else run.__exit__(None, None, None)
    assert len(seen) == 1
    with (
        pytest.raises(halfframe.HalfframeError, match="is still generating in another thread"),
        halfframe.enabled(pipe),
    ):
        pass
    with pytest.raises(halfframe.HalfframeError, match="nothing to switch off"):
        halfframe.disable(pipe)
    left.set()
    thread.join()
    assert torch.equal(videos[0], expected)
    assert run.reports == reports
    assert len(reports) == 1
    assert state_of(pipe) == before
    assert torch.equal(call(pipe), plain)
    with halfframe.enabled(pipe) as again:
        assert torch.equal(call(pipe), expected)
    assert len(again.reports) == 1


@pytest.mark.parametrize("make", [tiny_wan_t2v, tiny_diffusers_t2v])
def test_disabled_from_within_a_run(make: Any) -> None:
    """By a hook, in the run's own thread: no warning, and the run ends as it began."""
    pipe = make()
    call, state_of = (generate, state) if make is tiny_wan_t2v else (run_diffusers, state_of_diffusers)
    plain, before = call(pipe), state_of(pipe)

    class Disable:
        @halfframe.hookimpl
        def halfframe_boundary(self, boundary: Any) -> None:
            halfframe.disable(pipe)

    with halfframe.enabled(pipe):
        expected = call(pipe)
    handle = halfframe.enable(pipe, plugins=[Disable()])
    assert torch.equal(call(pipe), expected)
    assert len(handle.reports) == 1
    assert state_of(pipe) == before
    assert torch.equal(call(pipe), plain)


def test_generate_from_within_a_hook_is_refused(t2v: Any) -> None:
    before = state(t2v)

    class Recursive:
        @halfframe.hookimpl
        def halfframe_boundary(self, boundary: Any) -> None:
            generate(t2v)

    with halfframe.enabled(t2v, plugins=[Recursive()]), pytest.raises(halfframe.HalfframeError, match="already"):
        generate(t2v)
    assert state(t2v) == before


def test_enabled_twice_is_refused_and_the_outer_block_goes_on(t2v: Any) -> None:
    before = state(t2v)
    with halfframe.enabled(t2v) as run:
        inside = state(t2v)
        with pytest.raises(halfframe.HalfframeError, match="this WanT2V is enabled already"), halfframe.enabled(t2v):
            pass
        assert state(t2v) == inside
        generate(t2v)
    assert run.report is not None
    assert state(t2v) == before


def test_contexts_that_exit_out_of_order() -> None:
    first, second = tiny_wan_t2v(0), tiny_wan_t2v(1)
    states = state(first), state(second)
    one, two = ExitStack(), ExitStack()
    one.enter_context(halfframe.enabled(first))
    two.enter_context(halfframe.enabled(second))
    one.close()
    assert state(first) == states[0]
    two.close()
    assert state(second) == states[1]


def test_patch_that_somebody_put_over_ours_stays_theirs_and_ours_goes_quiet(t2v: Any) -> None:
    plain = generate(t2v)
    with halfframe.enabled(t2v) as run:
        ours = t2v.generate

        def theirs(*args: Any, **kwargs: Any) -> Any:
            return ours(*args, **kwargs)

        t2v.generate = theirs
        generate(t2v)
        assert run.report is not None
        assert run.report.saved
    assert vars(t2v)["generate"] is theirs
    assert torch.equal(generate(t2v), plain)
    assert len(run.reports) == 1


def test_a_pipe_that_was_patched_before_is_refused(t2v: Any) -> None:
    t2v.generate = lambda *args, **kwargs: None
    before = state(t2v)
    with pytest.raises(halfframe.UnsupportedPipelineError, match="`generate` was replaced"), halfframe.enabled(t2v):
        pass
    assert state(t2v) == before


def test_attributes_set_inside_the_block_are_kept(t2v: Any) -> None:
    with halfframe.enabled(t2v):
        t2v.note = "mine"
        generate(t2v)
    assert t2v.note == "mine"
    assert "generate" not in vars(t2v)
    assert "_prepare_model_for_timestep" not in vars(t2v)


def test_nothing_happens_before_the_block_is_entered(t2v: Any) -> None:
    before = state(t2v)
    handle = halfframe.enabled(t2v)
    assert state(t2v) == before
    with pytest.warns(
        halfframe.HalfframeWarning, match=r"enabled\(WanT2V\) was never entered, so nothing was made faster"
    ):
        handle.__del__()
    with handle:
        pass
    assert state(t2v) == before


def test_nothing_keeps_the_pipe_alive() -> None:
    pipe = tiny_wan_t2v()
    with halfframe.enabled(pipe) as run:
        generate(pipe)
    handle = weakref.ref(pipe)
    del pipe, run
    gc.collect()
    assert handle() is None


def bad_shape(latents: Tensor, num_frames: int) -> Tensor:
    return latents


def bad_dtype(latents: Tensor, num_frames: int) -> Tensor:
    return latents.repeat_interleave(2, dim=-3)[..., :num_frames, :, :].double()


def bad_device(latents: Tensor, num_frames: int) -> Tensor:
    return latents.repeat_interleave(2, dim=-3)[..., :num_frames, :, :].to("meta")


def bad_type(latents: Tensor, num_frames: int) -> Any:
    return latents.repeat_interleave(2, dim=-3)[..., :num_frames, :, :].numpy()


def broken(latents: Tensor, num_frames: int) -> Tensor:
    raise ZeroDivisionError("oops")


@pytest.mark.parametrize(
    ("strategy", "message"),
    [
        (
            bad_shape,
            r"'bad_shape' made of the latents at the switch has shape \(16, 3, 4, 6\); needed: \(16, 5, 4, 6\), time",
        ),
        (
            bad_dtype,
            r"'bad_dtype' made of the latents at the switch is torch.float64 on cpu; needed: torch.float32 on cpu",
        ),
        (
            bad_device,
            r"'bad_device' made of the latents at the switch is torch.float32 on meta; needed: torch.float32 on",
        ),
        (bad_type, r"strategy 'bad_type' made of the latents at the switch is ndarray; needed: a tensor"),
        (broken, r"strategy 'broken' failed in 'at_switch': ZeroDivisionError: oops"),
    ],
)
def test_strategy_that_returns_nonsense(t2v: Any, strategy: Any, message: str) -> None:
    before, plain = state(t2v), generate(t2v)
    with halfframe.enabled(t2v, strategy) as run, pytest.raises(halfframe.StrategyError, match=message):
        generate(t2v)
    assert run.reports == []
    assert state(t2v) == before
    assert torch.equal(generate(t2v), plain)


def test_hook_that_allocates_nonsense(t2v: Any) -> None:
    class Short:
        @halfframe.hookimpl
        def halfframe_allocate(self, allocation: halfframe.Allocation) -> Tensor:
            return torch.zeros(16, 3, 4, 6)

    with (
        halfframe.enabled(t2v, plugins=[Short()]),
        pytest.raises(halfframe.StrategyError, match=r"halfframe_allocate hook returned has shape \(16, 3, 4, 6\)"),
    ):
        t2v.generate(PROMPT, size=(48, 32), frame_num=17, sampling_steps=4, offload_model=False)


def test_boundary_hook_that_assigns_nonsense(t2v: Any) -> None:
    class Half:
        @halfframe.hookimpl
        def halfframe_boundary(self, boundary: halfframe.Boundary) -> None:
            boundary.latents = boundary.latents.half()

    with (
        halfframe.enabled(t2v, plugins=[Half()]),
        pytest.raises(halfframe.PluginError, match=r"assigned latents \(16, 5, 4, 6\), torch.float16 on cpu; needed"),
    ):
        generate(t2v)


def test_report_hook_that_fails_costs_neither_video_nor_report(t2v: Any) -> None:
    class Broken:
        @halfframe.hookimpl
        def halfframe_report(self, report: Any) -> None:
            raise RuntimeError("disk full")

    with halfframe.enabled(t2v) as run:
        expected = generate(t2v)
    with (
        halfframe.enabled(t2v, plugins=[Broken()]) as run,
        pytest.warns(halfframe.HalfframeWarning, match="a halfframe_report hook failed: RuntimeError: disk full"),
    ):
        assert torch.equal(generate(t2v), expected)
    assert len(run.reports) == 1


@pytest.mark.parametrize("how", [copy.copy, copy.deepcopy, lambda pipe: pickle.loads(pickle.dumps(pipe))])
def test_copy_made_inside_the_block_is_a_plain_pipe_of_its_own(t2v: Any, how: Any) -> None:
    plain, before = generate(t2v), state(t2v)
    with halfframe.enabled(t2v) as run:
        twin = how(t2v)
        assert torch.equal(generate(twin), plain)
        assert run.reports == []
    assert type(twin) is type(t2v)
    assert state(t2v) == before
    with halfframe.enabled(twin) as run:
        generate(twin)
    assert run.report is not None


def test_a_finished_run_holds_no_tensor() -> None:
    """Without the garbage collector's help: a clip's worth of device memory per run would add up."""
    pipe = tiny_wan_t2v()
    with halfframe.enabled(pipe) as run:
        generate(pipe)
        gc.collect()
        gc.disable()
        try:
            live = sum(issubclass(type(thing), Tensor) for thing in gc.get_objects())
            for _ in range(3):
                generate(pipe)
            assert sum(issubclass(type(thing), Tensor) for thing in gc.get_objects()) <= live
        finally:
            gc.enable()
    assert len(run.reports) == 4


class InPlace(halfframe.Strategy):
    """Halves the latents' contrast at the switch, in one of several ways that must come to the same."""

    def __init__(self, way: str) -> None:
        self.way = way

    def move(self, step: halfframe.Step) -> halfframe.FrameMap | None:
        if step.expert == "low":
            return None
        return halfframe.FrameMap.select(range(0, step.num_frames, 2), step.num_frames, between="hold")

    def at_switch(self, latents: Tensor) -> Tensor:
        if self.way == "new":
            return latents * 0.5
        return latents.mul_(0.5) if self.way == "in place" else latents.mul_(0.5)[:]


@pytest.mark.parametrize("solver", ["unipc", "dpm++"])
def test_strategy_that_works_in_place(t2v: Any, solver: str) -> None:
    videos = []
    for way in ("new", "in place", "view"):
        with halfframe.enabled(t2v, InPlace(way)):
            videos.append(generate(t2v, sample_solver=solver))
    assert torch.equal(videos[0], videos[1])
    assert torch.equal(videos[0], videos[2])


def test_boundary_hook_that_works_in_place(t2v: Any) -> None:
    class Darken:
        def __init__(self, in_place: bool) -> None:
            self.in_place = in_place

        @halfframe.hookimpl
        def halfframe_boundary(self, boundary: halfframe.Boundary) -> None:
            if self.in_place:
                boundary.latents.mul_(0.5)
            else:
                boundary.latents = boundary.latents * 0.5

    videos = []
    for in_place in (False, True):
        with halfframe.enabled(t2v, plugins=[Darken(in_place)]):
            videos.append(generate(t2v))
    assert torch.equal(videos[0], videos[1])
