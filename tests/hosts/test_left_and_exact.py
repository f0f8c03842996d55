"""Two things that go wrong in silence: a block left under the feet of a call, and precision lost at the switch."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

import halfframe
from halfframe.testing import tiny_diffusers_t2v, tiny_wan_t2v

from ..helpers_diffusers import ARGS, PROMPT, SCHEDULERS, run, seeded
from .plain_loop import diffusers_parts, short_clip
from .test_wan_t2v import generate

EXPERTS = ("transformer", "transformer_2")

# A block that is left while another thread has begun a call, but no run yet.


@pytest.mark.parametrize(
    ("make", "call"),
    [
        (tiny_wan_t2v, generate),
        (tiny_diffusers_t2v, lambda pipe: pipe(**ARGS, generator=seeded()).frames),
    ],
    ids=["official", "diffusers"],
)
def test_block_left_before_a_call_became_a_run(make: Callable[[], Any], call: Callable[[Any], Tensor]) -> None:
    pipe = make()
    plain = call(pipe)
    began, left = threading.Event(), threading.Event()
    outcome: list[Any] = []

    class Watched(type(pipe)):  # type: ignore[misc]
        """Halts the other thread where the call first looks at its pipeline, until the block was left."""

        def __getattribute__(self, name: str) -> Any:
            if threading.current_thread() is thread and name not in ("__class__", "__dict__", "generate"):
                began.set()
                assert left.wait(60)
            return super().__getattribute__(name)

    def other() -> None:
        try:
            outcome.append(call(pipe))
        except halfframe.HalfframeError as error:
            outcome.append(str(error))

    thread = threading.Thread(target=other)
    pipe.__class__ = Watched
    with halfframe.enabled(pipe) as enabled:
        thread.start()
        assert began.wait(60)
    left.set()
    thread.join()
    [message] = outcome
    assert isinstance(message, str), "the call went on, halved, on a pipeline that is not enabled"
    assert "was left while another thread was calling it" in message
    assert enabled.reports == []
    assert torch.equal(call(pipe), plain)
    with halfframe.enabled(pipe, "self-duplicate") as enabled:
        call(pipe)
    assert len(enabled.reports) == 1


# Experts in bfloat16, latents in float32: at the switch the clip is the scheduler's, not what the expert was given.


@pytest.fixture
def bfloat16() -> Any:
    pipe = tiny_diffusers_t2v()
    for name in EXPERTS:
        getattr(pipe, name).to(torch.bfloat16)
    return pipe


class Brighter:
    """Edits the clip at the switch, in place or by assigning another."""

    def __init__(self, in_place: bool) -> None:
        self.in_place = in_place
        self.before: list[Tensor] = []

    @halfframe.hookimpl
    def halfframe_boundary(self, boundary: halfframe.Boundary) -> None:
        self.before.append(boundary.before.clone())
        if self.in_place:
            boundary.latents.add_(0.5)
        else:
            boundary.latents = boundary.latents + 0.5


@pytest.mark.parametrize("in_place", [False, True])
@pytest.mark.parametrize("scheduler", ["unipc", "dpm++"])
def test_edit_at_the_switch_costs_no_precision(bfloat16: Any, scheduler: str, in_place: bool) -> None:
    bfloat16.scheduler = SCHEDULERS[scheduler]()
    with torch.no_grad():
        parts = diffusers_parts(bfloat16, [PROMPT], num_frames=17, steps=8)
        expected = short_clip(parts, at_switch=lambda clip: clip + 0.5)
    with halfframe.enabled(bfloat16, "self-duplicate", plugins=[Brighter(in_place)]):
        latents = run(bfloat16)
    assert latents.dtype == expected.dtype == torch.float32
    # One rounding to bfloat16 on the way would be 0.004 of each value, and moves the expert's answers besides.
    torch.testing.assert_close(latents, expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize("strategy", ["self-duplicate", "merge"])
def test_hook_at_the_switch_sees_the_clip_as_the_scheduler_has_it(bfloat16: Any, strategy: str) -> None:
    after_steps: list[Tensor] = []

    def keep(_: Any, step: int, __: Any, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
        after_steps.append(tensors["latents"].clone())
        return tensors

    hook = Brighter(in_place=False)
    with halfframe.enabled(bfloat16, strategy, plugins=[hook]):
        run(bfloat16, callback_on_step_end=keep)
    [before] = hook.before
    assert before.dtype == torch.float32
    assert any(torch.equal(before, latents) for latents in after_steps)


def test_clip_that_a_callback_replaced_is_the_one_at_the_switch(bfloat16: Any) -> None:
    """It is not what the scheduler made, so that must not come back."""
    other = torch.randn(1, 16, 5, 4, 6, generator=torch.Generator().manual_seed(9))
    hook = Brighter(in_place=False)
    with halfframe.enabled(bfloat16, "merge", plugins=[hook]):
        run(bfloat16, callback_on_step_end=lambda *_: {"latents": other.clone()})
    torch.testing.assert_close(hook.before[0].float(), other, rtol=0, atol=0.02)
