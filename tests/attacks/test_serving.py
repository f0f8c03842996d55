"""One pipeline, many requests: queues, event loops, forks, bounded reports."""

from __future__ import annotations

import asyncio
import copy
import os
import pickle
import threading
from typing import Any

import pytest

import halfframe
from halfframe import handle as handle_module

from . import interrupts

ARGS: dict[str, Any] = {"size": (16, 16), "frame_num": 5, "sampling_steps": 2, "offload_model": False}


def test_requests_wait_for_their_turn_in_order(t2v: Any) -> None:
    seen: list[tuple[int, Any]] = []
    with halfframe.enabled(t2v, wait=True) as run:

        def request(number: int) -> None:
            t2v.generate("a ball", seed=number, **ARGS)
            seen.append((number, run.report))

        threads = [threading.Thread(target=request, args=(number,)) for number in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(60)
        assert sorted(number for number, _ in seen) == [0, 1, 2, 3]
        assert len({id(report) for _, report in seen}) == 4  # each thread sees its own
        assert len(run.reports) == 4


def test_a_busy_pipeline_says_how_to_wait(t2v: Any) -> None:
    messages: list[str] = []

    class Second:
        @halfframe.hookimpl
        def halfframe_boundary(self, boundary: Any) -> None:
            def call() -> None:
                try:
                    t2v.generate("a ball", **ARGS)
                except halfframe.HalfframeError as error:
                    messages.append(str(error))

            thread = threading.Thread(target=call)
            thread.start()
            thread.join(30)

    with halfframe.enabled(t2v, plugins=[Second()]):
        t2v.generate("a ball", **ARGS)
    assert "wait=True" in messages[0]


def test_wait_does_not_let_a_run_wait_for_itself(t2v: Any) -> None:
    class Nested:
        @halfframe.hookimpl
        def halfframe_boundary(self, boundary: Any) -> None:
            t2v.generate("a ball", **ARGS)

    with (
        halfframe.enabled(t2v, wait=True, plugins=[Nested()]),
        pytest.raises(halfframe.HalfframeError, match="already"),
    ):
        t2v.generate("a ball", **ARGS)


def test_wait_is_true_or_false(t2v: Any) -> None:
    for name in ("wait", "measure"):
        with pytest.raises(halfframe.OptionError, match=f"{name} must be True or False"):
            halfframe.enabled(t2v, **{name: "no"})


def test_a_long_lived_block_keeps_a_hundred_reports(t2v: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(handle_module, "_KEPT_REPORTS", 2)
    with halfframe.enabled(t2v) as run:
        for _ in range(3):
            t2v.generate("a ball", **ARGS)
        assert len(run.reports) == 2
        assert run.report is run.reports[-1]


def test_a_handle_that_is_pickled_or_copied_says_why_not(t2v: Any) -> None:
    with halfframe.enabled(t2v) as run:
        for attempt in (pickle.dumps, copy.copy, copy.deepcopy):
            with pytest.raises(halfframe.HalfframeError, match="cannot be copied or pickled"):
                attempt(run)


def test_leaving_on_an_event_loop_does_not_wait_for_a_run_that_waits_for_the_loop() -> None:
    pipe, _ = interrupts.small("diffusers")
    arguments: dict[str, Any] = {"height": 16, "width": 16, "num_frames": 5, "num_inference_steps": 2}

    async def serve() -> str:
        loop = asyncio.get_running_loop()
        began = asyncio.Event()

        async def progress() -> None:
            began.set()

        def callback(_: Any, step: int, time: Any, given: dict[str, Any]) -> dict[str, Any]:
            asyncio.run_coroutine_threadsafe(progress(), loop).result(30)  # waits for the loop
            return given

        with pytest.warns(halfframe.HalfframeWarning, match="switched off while thread"):  # noqa: PT031
            with halfframe.enabled(pipe):
                task = asyncio.create_task(
                    asyncio.to_thread(pipe, "a ball", callback_on_step_end=callback, output_type="latent", **arguments)
                )
                await began.wait()
            await asyncio.wait_for(task, 60)
        return type(pipe).__name__

    assert asyncio.run(serve()) == "WanPipeline"
    assert interrupts.left_behind(pipe) == []


@pytest.mark.filterwarnings("ignore")
def test_a_process_forked_while_another_thread_generates_leaves_the_block(t2v: Any) -> None:
    reached, go_on = threading.Event(), threading.Event()

    class Slow:
        @halfframe.hookimpl
        def halfframe_boundary(self, boundary: Any) -> None:
            reached.set()
            go_on.wait(60)

    handle = halfframe.enabled(t2v, plugins=[Slow()])
    handle.__enter__()
    thread = threading.Thread(target=lambda: t2v.generate("a ball", **ARGS))
    thread.start()
    assert reached.wait(60)
    child = os.fork()
    if not child:
        code = 1
        try:
            handle.__exit__(None, None, None)
            code = 0 if not interrupts.left_behind(t2v) else 2
        finally:
            os._exit(code)
    status = None
    for _ in range(200):
        done, status = os.waitpid(child, os.WNOHANG)
        if done:
            break
        threading.Event().wait(0.05)
    else:
        os.kill(child, 9)
        os.waitpid(child, 0)
        status = None
    go_on.set()
    thread.join(60)
    handle.__exit__(None, None, None)
    assert status == 0
