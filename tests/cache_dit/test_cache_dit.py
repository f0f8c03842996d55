"""cache-dit turned on before halfframe and in its block, with policies that reuse without a look at what."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import Tensor

import halfframe
from halfframe.testing import WanSizes, tiny_diffusers_t2v

from ..helpers_diffusers import AtSwitch, half_frame_latents, run

EXPERTS = ("transformer", "transformer_2")
POLICIES: dict[str, dict[str, Any]] = {
    "always": {"residual_diff_threshold": 2.0},
    "by difference": {"residual_diff_threshold": 0.5},
    "static": {"steps_computation_mask": [1, 0, 1, 0, 1, 0, 1, 0], "steps_computation_policy": "static"},
}
CHANGING: dict[str, Any] = {
    "frames": "interleave",
    "means": halfframe.Recipe(("merge:2", "merge:3", "merge:2", "merge:3", "merge:2", "merge:3", "full", "full")),
}


@pytest.fixture
def pipeline(cache_dit: Any) -> Iterator[Callable[[], Any]]:
    """Makes pipelines, each of a class of its own, because cache-dit changes the class."""
    made = []

    def make() -> Any:
        pipe = tiny_diffusers_t2v(sizes=WanSizes(num_layers=3))
        cls = type(pipe)
        pipe.__class__ = type(cls.__name__, (cls,), {"__module__": cls.__module__})
        made.append(pipe)
        return pipe

    yield make
    for pipe in made:
        cache_dit.disable_cache(pipe)


def turn_on(cache_dit: Any, pipe: Any, policy: str = "always", taylor: bool = False, **options: Any) -> Any:
    config = cache_dit.DBCacheConfig(
        **{"Fn_compute_blocks": 1, "Bn_compute_blocks": 0, "max_warmup_steps": 1, **POLICIES[policy], **options}
    )
    calibrator = cache_dit.TaylorSeerCalibratorConfig(taylorseer_order=1) if taylor else None
    cache_dit.enable_cache(pipe, cache_config=config, calibrator_config=calibrator)
    return pipe


def begin(pipe: Any) -> None:
    """What cache-dit does at the head of a call."""
    for name in EXPERTS:
        expert = getattr(pipe, name)
        for context in expert._context_names:
            kwargs = {**expert._context_kwargs, "name": context}
            pipe._context_manager.reset_context(context, **kwargs)


def cached_steps(pipe: Any) -> list[int]:
    """Of each expert, how many steps of the conditional pass were served from its cache."""
    manager = pipe._context_manager
    return [len(manager.get_context(getattr(pipe, name)._context_names[0]).cached_steps) for name in EXPERTS]


@pytest.mark.parametrize("taylor", [False, True])
@pytest.mark.parametrize("policy", POLICIES)
@pytest.mark.parametrize("strategy", CHANGING)
def test_where_the_frames_change_nothing_is_reused(
    cache_dit: Any, pipeline: Any, strategy: str, policy: str, taylor: bool
) -> None:
    """The high-noise expert's do at every step."""
    at_switch = AtSwitch()
    cached = turn_on(cache_dit, pipeline(), policy, taylor)
    for pipe in (pipeline(), cached):
        with halfframe.enabled(pipe, CHANGING[strategy], plugins=[at_switch]):
            run(pipe)
    assert torch.equal(*at_switch.latents)
    assert cached_steps(cached)[1] > 0, "the low-noise expert's frames stay, so it reuses"


@pytest.mark.parametrize("policy", POLICIES)
@pytest.mark.parametrize("strategy", ["interleave", "merge", "interpolate:until=2"])
def test_every_policy_runs_whatever_becomes_of_the_frames(
    cache_dit: Any, pipeline: Any, strategy: str, policy: str
) -> None:
    pipe = turn_on(cache_dit, pipeline(), policy)
    plain = run(pipe)
    with halfframe.enabled(pipe, strategy):
        first, second = run(pipe), run(pipe)
    assert torch.equal(first, second)
    assert torch.equal(run(pipe), plain)
    assert "can_cache" not in vars(pipe._context_manager)


@pytest.mark.parametrize("taylor", [False, True])
@pytest.mark.parametrize("policy", POLICIES)
def test_where_the_frames_stay_it_reuses_as_ever(cache_dit: Any, pipeline: Any, policy: str, taylor: bool) -> None:
    pipe = turn_on(cache_dit, pipeline(), policy, taylor)
    begin(pipe)
    expected = half_frame_latents(pipe)
    used = cached_steps(pipe)
    assert min(used) > 0
    with halfframe.enabled(pipe, "self-duplicate"):
        torch.testing.assert_close(run(pipe), expected, rtol=0, atol=1e-5)
    assert cached_steps(pipe) == used


class Labels:
    """What cache-dit takes each pass for, beside what it is."""

    def __init__(self, pipe: Any) -> None:
        self.seen: list[tuple[bool, bool]] = []
        self._text: Tensor | None = None
        self._first: Tensor | None = None
        manager = pipe._context_manager
        mark = manager.mark_step_begin

        def marked() -> None:
            mark()
            if self._text is not None and self._first is not None:
                self.seen.append((manager.get_context().is_separate_cfg_step(), not self._text.equal(self._first)))

        manager.mark_step_begin = marked
        for name in EXPERTS:  # parts that are called in passes that are made only
            expert = getattr(pipe, name)
            expert.condition_embedder.register_forward_pre_hook(self._before)
            expert.proj_out.register_forward_hook(self._after)

    def _before(self, _: Any, args: Any) -> None:
        self._text = args[1]
        self._first = self._text if self._first is None else self._first

    def _after(self, *_: Any) -> None:
        self._text = None


@pytest.mark.parametrize(
    "what",
    [
        {"guidance": halfframe.Guidance(every=2)},
        {"guidance": halfframe.Guidance(skip_last=3, skip_last_high=2)},
        {
            "strategy": halfframe.Recipe(
                ("merge:2", "reuse", "full+cond", "full", "merge:2+delta", "reuse", "full+cond", "full")
            )
        },
    ],
    ids=["every second", "the last", "a recipe"],
)
@pytest.mark.parametrize("policy", POLICIES)
def test_passes_that_are_left_out_are_counted(cache_dit: Any, pipeline: Any, what: dict[str, Any], policy: str) -> None:
    """Or the next conditional pass would be given what the other one computed."""
    pipe = turn_on(cache_dit, pipeline(), policy)
    labels = Labels(pipe)
    with halfframe.enabled(pipe, **{"strategy": "self-duplicate", **what}) as enabled:
        run(pipe)
    assert enabled.report is not None
    assert len(labels.seen) == enabled.report.high.passes + enabled.report.low.passes < 16
    assert all(taken_for == unconditional for taken_for, unconditional in labels.seen)


@pytest.mark.parametrize("policy", POLICIES)
def test_turned_on_in_the_block(cache_dit: Any, pipeline: Any, policy: str) -> None:
    """It is on from the next run on, and after the block, and each run begins afresh."""
    before = turn_on(cache_dit, pipeline(), policy)
    plain = run(before)
    with halfframe.enabled(before, "self-duplicate"):
        expected = run(before)
    pipe = pipeline()
    cls = type(pipe)
    with halfframe.enabled(pipe, "self-duplicate"):
        uncached = run(pipe)
        turn_on(cache_dit, pipe, policy)
        assert torch.equal(run(pipe), expected)
        assert torch.equal(run(pipe), expected)
    assert not torch.equal(uncached, expected)
    assert type(pipe) is cls
    assert torch.equal(run(pipe), plain)
    assert torch.equal(run(pipe), plain)


@pytest.mark.parametrize("strategy", ["self-duplicate", "merge"])
def test_turned_off_in_the_block(cache_dit: Any, pipeline: Any, strategy: str) -> None:
    never = pipeline()
    plain = run(never)
    with halfframe.enabled(never, strategy):
        expected = run(never)
    pipe = turn_on(cache_dit, pipeline())
    with halfframe.enabled(pipe, strategy) as enabled:
        run(pipe)
        cache_dit.disable_cache(pipe)
        assert torch.equal(run(pipe), expected)
    assert len(enabled.reports) == 2
    assert torch.equal(run(pipe), plain)
    assert not hasattr(type(pipe), "_original_call")


def test_turned_on_and_off_in_the_block(cache_dit: Any, pipeline: Any) -> None:
    pipe = pipeline()
    plain, call = run(pipe), type(pipe).__call__
    with halfframe.enabled(pipe, "merge"):
        expected = run(pipe)
        turn_on(cache_dit, pipe)
        run(pipe)
        cache_dit.disable_cache(pipe)
        assert torch.equal(run(pipe), expected)
    assert type(pipe).__call__ is call
    assert torch.equal(run(pipe), plain)


def test_on_one_expert_alone(cache_dit: Any, pipeline: Any) -> None:
    """There no call of the pipeline begins a request; the user does."""
    pipe = pipeline()
    turn_on(cache_dit, pipe.transformer, num_inference_steps=6, enable_separate_cfg=True)

    def fresh() -> Tensor:
        cache_dit.refresh_context(pipe.transformer, num_inference_steps=6)
        return run(pipe)

    plain = fresh()
    recipe = halfframe.Recipe(("merge:2", "reuse", "full+cond", "full", "merge:2+cond", "reuse", "full+cond", "full"))
    with halfframe.enabled(pipe, recipe):
        first = fresh()
        assert torch.equal(fresh(), first)
    assert torch.equal(fresh(), plain)
