"""diffusers: what a callback exchanges, calls, copies and pickles in the middle of a run."""

from __future__ import annotations

import copy
import functools
import gc
import pickle
import weakref
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

import halfframe
from halfframe.testing import tiny_diffusers_i2v, tiny_diffusers_t2v, tiny_wan_i2v, tiny_wan_t2v

from ..helpers_diffusers import SCHEDULERS, run, state
from .test_diffusers import at_step, in_thread, sibling
from .test_wan_i2v import generate as generate_i2v
from .test_wan_t2v import generate

STRATEGIES = ["self-duplicate", "merge"]
RECIPE = halfframe.Recipe(("merge:2", "reuse", "interleave:2", "full+cond", "merge:3+delta", "reuse", "full", "reuse"))
LAST_HIGH = 5  # of 8 steps at shift 12
Callback = Callable[..., dict[str, Tensor]]


@pytest.fixture
def t2v() -> Any:
    return tiny_diffusers_t2v()


def served(pipe: Any, strategy: Any, callback: Callback | None = None) -> tuple[Tensor, halfframe.Report]:
    """Latents and report of a run."""
    with halfframe.enabled(pipe, strategy) as enabled:
        torch.manual_seed(3)  # a stochastic scheduler draws from the global generator
        latents = run(pipe, callback_on_step_end=callback)
    assert enabled.report is not None
    return latents, enabled.report


def counts(report: halfframe.Report) -> dict[str, Any]:
    """A report without its times."""
    return {name: value for name, value in report.to_dict().items() if name != "total_seconds"}


# Exchanged parts.


@pytest.mark.parametrize("step", [LAST_HIGH - 2, LAST_HIGH, LAST_HIGH + 1])
@pytest.mark.parametrize("scheduler", ["unipc", "dpm++", "euler", "stochastic euler", "heun"])
@pytest.mark.parametrize("strategy", STRATEGIES)
def test_scheduler_exchanged_for_a_copy(t2v: Any, scheduler: str, strategy: str, step: int) -> None:
    t2v.scheduler = first = SCHEDULERS[scheduler]()
    expected, report = served(t2v, strategy)
    last_high = report.high.steps - 1
    at = last_high + step - LAST_HIGH
    t2v.scheduler = first

    def exchange() -> None:
        t2v.scheduler = copy.deepcopy(t2v.scheduler)

    latents, again = served(t2v, strategy, at_step(at, exchange))
    assert t2v.scheduler is not first
    assert torch.equal(latents, expected)
    assert counts(again) == counts(report)
    assert type(t2v.scheduler) is type(first) is type(SCHEDULERS[scheduler]())
    assert {**vars(t2v.scheduler)}.keys() == {**vars(first)}.keys()


@pytest.mark.parametrize("step", [0, LAST_HIGH - 2, LAST_HIGH, LAST_HIGH + 1])
def test_scheduler_exchanged_in_a_recipe(t2v: Any, step: int) -> None:
    expected, report = served(t2v, RECIPE)

    def exchange() -> None:
        t2v.scheduler = copy.deepcopy(t2v.scheduler)

    latents, again = served(t2v, RECIPE, at_step(step, exchange))
    assert torch.equal(latents, expected)
    assert counts(again) == counts(report)


def test_scheduler_exchanged_back_and_forth(t2v: Any) -> None:
    """Each is served while it is the pipeline's, and none twice."""
    first = t2v.scheduler
    expected, report = served(t2v, "merge")

    def exchange(_: Any, step: int, __: Any, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
        other = copy.deepcopy(t2v.scheduler)
        if step % 2:
            vars(first).update(vars(other))
            other = first
        t2v.scheduler = other
        return tensors

    latents, again = served(t2v, "merge", exchange)
    assert torch.equal(latents, expected)
    assert counts(again) == counts(report)
    assert type(t2v.scheduler) is type(SCHEDULERS["unipc"]())


def test_scheduler_that_was_exchanged_is_plain(t2v: Any) -> None:
    """What a callback does with the old one is no part of the run."""
    expected, report = served(t2v, "merge")

    def exchange() -> None:
        old, t2v.scheduler = t2v.scheduler, copy.deepcopy(t2v.scheduler)
        sample = torch.zeros(1, 16, 5, 4, 6)
        old.step(sample, old.timesteps[old.step_index], sample)

    latents, again = served(t2v, "merge", at_step(2, exchange))
    assert torch.equal(latents, expected)
    assert counts(again) == counts(report)


@pytest.mark.parametrize("name", ["transformer", "transformer_2"])
@pytest.mark.parametrize("step", [2, LAST_HIGH - 2, LAST_HIGH, LAST_HIGH + 1])
@pytest.mark.parametrize("strategy", [*STRATEGIES, RECIPE], ids=str)
def test_expert_exchanged_for_a_copy(t2v: Any, strategy: Any, step: int, name: str) -> None:
    first = getattr(t2v, name)
    expected, report = served(t2v, strategy)

    def exchange() -> None:
        setattr(t2v, name, copy.deepcopy(getattr(t2v, name)))

    latents, again = served(t2v, strategy, at_step(step, exchange))
    assert getattr(t2v, name) is not first
    assert torch.equal(latents, expected)
    assert counts(again) == counts(report)
    assert "forward" not in vars(first)
    plain = run(t2v)
    setattr(t2v, name, first)
    assert torch.equal(run(t2v), plain)


def test_expert_exchanged_by_another_thread(t2v: Any) -> None:
    """As where a callback has a worker do it, and waits."""
    expected, report = served(t2v, "merge")

    def exchange() -> None:
        in_thread(lambda: setattr(t2v, "transformer_2", copy.deepcopy(t2v.transformer_2)))

    latents, again = served(t2v, "merge", at_step(LAST_HIGH, exchange))
    assert torch.equal(latents, expected)
    assert counts(again) == counts(report)


# Calls that are no part of the run.


@pytest.mark.parametrize("value", [None, 500.0])
@pytest.mark.parametrize("strategy", STRATEGIES)
def test_another_thread_that_says_it_is_at_a_step(t2v: Any, strategy: str, value: float | None) -> None:
    """Whether a call is the loop's own is for the loop's own thread to say."""
    expected, report = served(t2v, strategy)
    calls: list[None] = []

    def between_passes(*_: Any) -> None:
        calls.append(None)
        if len(calls) == 5:  # the third step's conditional pass
            before = t2v._current_timestep
            in_thread(lambda: setattr(t2v, "_current_timestep", value))
            vars(t2v)["_current_timestep"] = before

    handle = t2v.transformer.patch_embedding.register_forward_hook(between_passes)
    latents, again = served(t2v, strategy)
    handle.remove()
    assert len(calls) == 12
    assert torch.equal(latents, expected)
    assert counts(again) == counts(report)


def expert_call(pipe: Any, name: str) -> Tensor:
    inputs = torch.ones(1, 16, 5, 4, 6)
    with torch.no_grad():
        return getattr(pipe, name)(
            hidden_states=inputs,
            timestep=torch.tensor([500.0]),
            encoder_hidden_states=torch.ones(1, 8, 16),
            return_dict=False,
        )[0]


@pytest.mark.parametrize("step", [0, 3, LAST_HIGH, 7])
@pytest.mark.parametrize("what", ["transformer", "transformer_2", "sibling", "copied pipeline"])
@pytest.mark.parametrize("strategy", [*STRATEGIES, RECIPE], ids=str)
def test_calls_from_a_callback_are_plain(t2v: Any, strategy: Any, what: str, step: int) -> None:
    other = sibling(t2v)

    def call() -> Tensor:
        if what == "sibling":
            return run(other)
        return run(copy.deepcopy(t2v)) if what == "copied pipeline" else expert_call(t2v, what)

    plain = call()
    expected, report = served(t2v, strategy)
    before = state(t2v)
    seen: list[Tensor] = []
    latents, again = served(t2v, strategy, at_step(step, lambda: seen.append(call())))
    assert torch.equal(seen[0], plain)
    assert torch.equal(latents, expected)
    assert counts(again) == counts(report)
    assert state(t2v).keys() == before.keys()


# Copies and pickles.


@pytest.mark.parametrize("how", [copy.deepcopy, lambda part: pickle.loads(pickle.dumps(part))], ids=["copy", "pickle"])
@pytest.mark.parametrize("step", [0, LAST_HIGH, 6])
def test_copies_made_in_a_callback_are_plain(t2v: Any, step: int, how: Callable[[Any], Any]) -> None:
    plain, plain_call = run(t2v), expert_call(t2v, "transformer")
    expected, report = served(t2v, "merge")
    made: dict[str, Any] = {}

    def make() -> None:
        made.update({name: how(getattr(t2v, name)) for name in ("scheduler", "transformer", "transformer_2")})
        made["pipe"] = how(t2v)
        assert torch.equal(expert_call(t2v, "transformer"), plain_call)
        assert torch.equal(made["transformer"](torch.ones(1, 16, 5, 4, 6), torch.tensor([500.0]), torch.ones(1, 8, 16))
                           .sample, plain_call)  # fmt: skip
        assert torch.equal(run(made["pipe"]), plain)

    latents, again = served(t2v, "merge", at_step(step, make))
    assert torch.equal(latents, expected)
    assert counts(again) == counts(report)
    assert type(made["scheduler"]) is type(t2v.scheduler)
    assert type(made["pipe"]) is type(t2v)
    assert made["pipe"].transformer is not t2v.transformer
    parts = {"transformer": made["transformer"], "transformer_2": made["transformer_2"]}
    fresh = type(t2v)(**{**t2v.components, **parts, "scheduler": SCHEDULERS["unipc"]()}, boundary_ratio=0.875)
    fresh.set_progress_bar_config(disable=True)
    for pipe in (made["pipe"], fresh):
        assert torch.equal(run(pipe), plain)
        assert torch.equal(served(pipe, "merge")[0], expected)


@pytest.mark.parametrize("own_forward", [False, True])
def test_a_shallow_copy_of_an_expert_is_plain(t2v: Any, own_forward: bool) -> None:
    """It may be called between the passes of a step, and its parts may be exchanged."""
    if own_forward:
        t2v.transformer.forward = functools.partial(type(t2v.transformer).forward, t2v.transformer)
    expected, report = served(t2v, "merge")
    names = {*vars(t2v.transformer)}
    plain = expert_call(t2v, "transformer")
    made: list[Any] = []

    class Copies:
        @halfframe.hookimpl
        def halfframe_expert_call(self, call: halfframe.ExpertCall) -> None:
            if call.step.index == 2 and call.number == 0:
                made.append(copy.copy(t2v.transformer))
                given = torch.ones(1, 16, 5, 4, 6), torch.tensor([500.0]), torch.ones(1, 8, 16)
                assert torch.equal(made[0](*given).sample, plain)

    with halfframe.enabled(t2v, "merge", plugins=[Copies()]) as enabled:
        assert torch.equal(run(t2v), expected)
    assert enabled.report is not None
    assert counts(enabled.report) == counts(report)
    (twin,) = made
    assert {*vars(twin)} == {*vars(t2v.transformer)} == names
    first, t2v.transformer = t2v.transformer, twin
    assert torch.equal(expert_call(t2v, "transformer"), plain)
    if not own_forward:
        twin._modules = {**twin._modules, "proj_out": t2v.transformer_2.proj_out}
        assert not torch.equal(expert_call(t2v, "transformer"), plain)
    t2v.transformer = first
    assert torch.equal(expert_call(t2v, "transformer"), plain)


@pytest.mark.parametrize("make", [tiny_wan_t2v, tiny_diffusers_t2v])
def test_copies_made_in_a_hook_are_plain(make: Callable[[], Any]) -> None:
    pipe = make()
    official = make is tiny_wan_t2v
    call = generate if official else run
    plain = call(pipe)
    copies: list[Any] = []

    class Copies:
        @halfframe.hookimpl
        def halfframe_boundary(self, boundary: halfframe.Boundary) -> None:
            copies.extend([copy.deepcopy(pipe), pickle.loads(pickle.dumps(pipe))])

    with halfframe.enabled(pipe) as enabled:
        expected = call(pipe)
    with halfframe.enabled(pipe, plugins=[Copies()]) as enabled:
        assert torch.equal(call(pipe), expected)
    assert enabled.report is not None
    for twin in copies:
        assert type(twin) is type(pipe)
        assert torch.equal(call(twin), plain)
        with halfframe.enabled(twin) as enabled:
            assert torch.equal(call(twin), expected)
    assert torch.equal(call(pipe), plain)


# A loop that is not the one that halfframe knows.


class Unseen:
    """An expert that is no module, so that nothing can be put in front of its calls."""

    def __init__(self, model: Any) -> None:
        self._model = model

    def __getattr__(self, name: str) -> Any:
        return getattr(self._model, name)

    def __call__(self, **kwargs: Any) -> Any:
        return type(self._model).forward(self._model, **kwargs)


@pytest.mark.parametrize(("name", "step", "at"), [("transformer", 2, 4), ("transformer_2", LAST_HIGH, 7)])
def test_step_without_an_expert_call_that_was_seen(t2v: Any, name: str, step: int, at: int) -> None:
    plain, first = run(t2v), getattr(t2v, name)

    def exchange() -> None:
        object.__setattr__(t2v, name, Unseen(first))
        t2v._modules = {}

    message = f"'diffusers' made scheduler step {at} of 8 without an expert call that halfframe saw; its sampling loop"
    with halfframe.enabled(t2v) as enabled, pytest.raises(halfframe.HalfframeError, match=message):
        run(t2v, callback_on_step_end=at_step(step, exchange))
    assert enabled.reports == []
    object.__setattr__(t2v, name, first)
    assert torch.equal(run(t2v), plain)


def test_scheduler_step_made_by_a_callback(t2v: Any) -> None:
    """It would set the pipeline back by a step; a copy of the scheduler may make it."""
    sample = torch.zeros(1, 16, 5, 4, 6)

    def step_of(scheduler: Any) -> None:
        scheduler.step(sample, scheduler.timesteps[scheduler.step_index], sample)

    expected, _ = served(t2v, "merge")
    preview = at_step(2, lambda: step_of(copy.deepcopy(t2v.scheduler)))
    assert torch.equal(served(t2v, "merge", preview)[0], expected)
    with halfframe.enabled(t2v), pytest.raises(halfframe.HalfframeError, match="made scheduler step 4 of 8 without an"):
        run(t2v, callback_on_step_end=at_step(2, lambda: step_of(t2v.scheduler)))


def test_scheduler_steps_before_the_first_expert_call(t2v: Any) -> None:
    prepare = t2v.scheduler.set_timesteps

    def warmed_up(*args: Any, **kwargs: Any) -> None:
        prepare(*args, **kwargs)
        sample = torch.zeros(1, 16, 5, 4, 6)
        t2v.scheduler.step(sample, t2v.scheduler.timesteps[0], sample)

    t2v.scheduler.set_timesteps = warmed_up
    message = "made 1 scheduler steps before its first expert call"
    with halfframe.enabled(t2v), pytest.raises(halfframe.HalfframeError, match=message):
        run(t2v)


def test_experts_that_are_never_seen_are_a_plain_run_and_it_says_so(t2v: Any) -> None:
    """Their calls are made in another way throughout, so nothing was reduced and the clip is whole."""
    plain = run(t2v)
    experts = {name: getattr(t2v, name) for name in ("transformer", "transformer_2")}
    prepare = t2v.scheduler.set_timesteps

    def exchange(*args: Any, **kwargs: Any) -> None:
        for name, expert in experts.items():
            object.__setattr__(t2v, name, Unseen(expert))
        prepare(*args, **kwargs)

    t2v.scheduler.set_timesteps = exchange
    with halfframe.enabled(t2v), pytest.warns(halfframe.HalfframeWarning, match="no expert call passed through"):
        latents = run(t2v)
    assert torch.equal(latents, plain)


# Memory.


@pytest.mark.parametrize("runs", [0, 1])
@pytest.mark.parametrize(
    ("make", "call"),
    [(tiny_wan_t2v, generate), (tiny_wan_i2v, generate_i2v), (tiny_diffusers_t2v, run), (tiny_diffusers_i2v, run)],
    ids=["official t2v", "official i2v", "diffusers t2v", "diffusers i2v"],
)
def test_pipeline_is_freed_without_the_garbage_collector(
    make: Callable[[], Any], call: Callable[[Any], Any], runs: int
) -> None:
    """Its experts may fill a GPU: they go when the last name for the pipeline goes."""
    plain, pipe = make(), make()
    call(plain)
    gc.collect()
    gc.disable()
    try:
        with halfframe.enabled(pipe) as enabled:
            for _ in range(runs):
                call(pipe)
        expected, seen = weakref.ref(plain), weakref.ref(pipe)
        del plain, pipe
        assert expected() is None, "a plain pipeline would not be freed either"
        assert seen() is None
        assert len(enabled.reports) == runs
        assert enabled.pipe is None
    finally:
        gc.enable()
