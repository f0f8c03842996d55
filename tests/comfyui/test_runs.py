"""A run from outside: hooks and report, interrupts, threads, queues, memory."""

from __future__ import annotations

import logging
import threading
from typing import Any

import pytest
import torch
from torch import Tensor

import halfframe
from halfframe import Recipe
from halfframe.hosts.comfyui import patch_model

from .experts import (
    LATENT_FRAMES,
    Experts,
    assert_same,
    image_conditions,
    normalised,
    official_latents,
)
from .graphs import with_lora
from .sampling import SEED, empty, shifted, stage, table, two_stages
from .test_neighbours import plain_and_patched

STEPS, SPLIT = 4, 2
STRATEGIES = ("self-duplicate", "interleave", "merge")


class Calls:
    """A plugin that keeps what it sees."""

    def __init__(self) -> None:
        self.seen: list[halfframe.ExpertCall] = []
        self.reports: list[halfframe.Report] = []
        self.boundaries: list[halfframe.Boundary] = []

    @halfframe.hookimpl
    def halfframe_expert_call(self, call: halfframe.ExpertCall) -> None:
        self.seen.append(call)

    @halfframe.hookimpl
    def halfframe_report(self, report: halfframe.Report) -> None:
        self.reports.append(report)

    @halfframe.hookimpl
    def halfframe_boundary(self, boundary: halfframe.Boundary) -> None:
        self.boundaries.append(boundary)


def test_hooks_and_report(t2v_experts: Experts, caplog: pytest.LogCaptureFixture) -> None:
    calls = Calls()
    _, patched = plain_and_patched(t2v_experts, "interpolate", plugins=[calls])
    with caplog.at_level(logging.INFO, logger="halfframe"):
        middle = stage(patched, t2v_experts, empty(), steps=STEPS, end=SPLIT)["samples"]
    assert [record.levelname for record in caplog.records] == ["INFO"]
    assert "5 of 9 latent frames" in caplog.text
    assert "predicted" in caplog.text
    (report,) = calls.reports
    assert (report.host, report.high.steps, report.low.steps) == ("comfyui", SPLIT, 0)
    assert report.moves == ("interpolate:2",) * SPLIT
    assert {call.latents.shape[2] for call in calls.seen} == {5}
    (boundary,) = calls.boundaries
    # What the boundary hook sees is the latents themselves, of which ComfyUI hands on a multiple.
    sigma = float(table(patched, STEPS)[SPLIT])
    assert boundary.sigma == pytest.approx(sigma)
    torch.testing.assert_close(boundary.before, normalised(middle) * (1 - sigma))


def test_a_hook_may_rewrite_the_clip_at_the_switch(t2v_experts: Experts) -> None:
    class Mirror:
        @halfframe.hookimpl
        def halfframe_boundary(self, boundary: halfframe.Boundary) -> None:
            boundary.latents = boundary.latents.flip(-1)

    high, patched = plain_and_patched(t2v_experts, "interpolate", plugins=[Mirror()])
    latents = stage(patched, t2v_experts, empty(), steps=STEPS, end=SPLIT)["samples"]
    plain = stage(patch_model(high, "interpolate"), t2v_experts, empty(), steps=STEPS, end=SPLIT)["samples"]
    assert_same(latents, plain.flip(-1))


def test_the_final_latents_are_seen_where_the_schedule_ends(t2v_experts: Experts) -> None:
    class See:
        def __init__(self) -> None:
            self.seen: list[Tensor] = []

        @halfframe.hookimpl
        def halfframe_latents(self, latents: Tensor) -> None:
            self.seen.append(latents)

    see = See()
    high, low = shifted(t2v_experts.high), shifted(t2v_experts.low)
    patched = patch_model(high, "interpolate", plugins=[see])
    last = patch_model(low, "interpolate", expert="low", until="end", plugins=[see])
    latents = two_stages(patched, last, t2v_experts, steps=STEPS, split=SPLIT)
    (seen,) = see.seen
    assert_same(seen, normalised(latents))


class Steps:
    """A plugin that keeps what it sees of each step."""

    def __init__(self) -> None:
        self.seen: list[tuple[halfframe.Step, Tensor, Tensor]] = []

    @halfframe.hookimpl
    def halfframe_step(self, step: halfframe.Step, latents: Tensor, velocity: Tensor) -> None:
        assert latents.shape == velocity.shape
        self.seen.append((step, latents.clone(), latents - step.sigma * velocity))


@pytest.mark.parametrize("kind", ["t2v", "i2v"])
def test_each_step_is_shown_as_in_the_official_host(kind: str, request: pytest.FixtureRequest) -> None:
    experts = request.getfixturevalue(f"{kind}_experts")
    recipe = Recipe(
        ("merge:2", "full", "full+delta:1.3,-0.3", "reuse:1.4,-0.6", "full", "full+cond"), high_noise_steps=4
    )
    ours, theirs = Steps(), Steps()
    high, low = shifted(experts.high), shifted(experts.low)
    models = patch_model(high, recipe, plugins=[ours]), patch_model(low, recipe, expert="low", plugins=[ours])
    conditions = experts.conditions(**image_conditions(experts.pipe)) if kind == "i2v" else None
    two_stages(*models, experts, steps=6, split=4, conditions=conditions)
    with halfframe.enabled(experts.pipe, recipe, plugins=[theirs]):
        official_latents(experts.pipe, table(high, 6), 4, cfg=3.5, seed=SEED)
    assert [step.index for step, *_ in ours.seen] == list(range(6))
    for (step, latents, shown), (other, *expected) in zip(ours.seen, theirs.seen, strict=True):
        assert step.expert == other.expert
        assert step.sigma == pytest.approx(other.sigma, abs=1e-6)
        assert_same(latents.reshape(expected[0].shape), expected[0])
        assert_same(shown.reshape(expected[1].shape), expected[1])


@pytest.mark.parametrize(
    ("sampler", "evaluated"), [("heun", [0, 1, 1, 2, 2, 3, 3, 3]), ("dpm_2", [0, 0, 1, 1, 2, 2, 3, 3])]
)
def test_a_step_that_is_evaluated_twice_counts_once(t2v_experts: Experts, sampler: str, evaluated: list[int]) -> None:
    """Heun's method evaluates a step at its end and once more at the beginning of the next, DPM-2 in the middle."""
    steps = Steps()
    recipe = Recipe(("full", "full", "full", "reuse:1.5,-0.6,0.1", "full"), high_noise_steps=4)
    model = patch_model(shifted(t2v_experts.high), recipe, plugins=[steps])
    stage(model, t2v_experts, empty(), steps=5, end=4, sampler=sampler)
    assert [step.index for step, *_ in steps.seen] == evaluated
    latest = {step.index: shown for step, _, shown in steps.seen if step.index < 3}
    expected = 1.5 * latest[2] - 0.6 * latest[1] + 0.1 * latest[0]
    for step, _, shown in steps.seen:
        if step.index == 3:
            assert_same(shown, expected)


def test_interrupt(t2v_experts: Experts, comfy: Any) -> None:
    high, patched = plain_and_patched(t2v_experts, "merge")
    expected = stage(patched, t2v_experts, empty(), steps=STEPS, end=SPLIT)["samples"]
    seen: list[int] = []

    def stop(*_: Any) -> None:
        seen.append(1)
        if len(seen) == 2:
            comfy.nodes.interrupt_processing(True)
            comfy.model_management.throw_exception_if_processing_interrupted()

    handle = high.model.diffusion_model.patch_embedding.register_forward_pre_hook(stop)
    try:
        with pytest.raises(comfy.model_management.InterruptProcessingException):
            stage(patched, t2v_experts, empty(), steps=STEPS, end=SPLIT)
    finally:
        handle.remove()
        comfy.nodes.interrupt_processing(False)
    assert "forward" not in vars(high.model.diffusion_model.rope_embedder)
    assert torch.equal(stage(patched, t2v_experts, empty(), steps=STEPS, end=SPLIT)["samples"], expected)


def test_models_unloaded_between_runs(t2v_experts: Experts, comfy: Any) -> None:
    high, low = shifted(t2v_experts.high), shifted(t2v_experts.low)
    patched = patch_model(with_lora(high, 1.0), "merge")
    expected = two_stages(patched, low, t2v_experts, steps=STEPS, split=SPLIT)
    comfy.model_management.unload_all_models()
    assert torch.equal(two_stages(patched, low, t2v_experts, steps=STEPS, split=SPLIT), expected)


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_both_passes_at_the_same_time(t2v_experts: Experts, comfy: Any, strategy: str) -> None:
    """As newer versions do on several GPUs: each condition of a step in a thread of its own."""
    high, patched = plain_and_patched(t2v_experts, strategy)
    expected = stage(patched, t2v_experts, empty(), steps=STEPS, end=SPLIT)["samples"]
    threads: set[int] = set()
    handle = high.model.diffusion_model.patch_embedding.register_forward_pre_hook(
        lambda *_: threads.add(threading.get_ident())
    )

    def in_threads(args: dict[str, Any]) -> list[Tensor]:
        results: list[Tensor | None] = [None, None]
        barrier = threading.Barrier(2)

        def evaluate(index: int) -> None:
            conditions = [conds if number == index else None for number, conds in enumerate(args["conds"])]
            barrier.wait()
            with torch.inference_mode():
                results[index] = comfy.comfy.samplers.calc_cond_batch(
                    args["model"], conditions, args["input"], args["sigma"], args["model_options"]
                )[index]

        workers = [threading.Thread(target=evaluate, args=(index,)) for index in range(2)]
        for worker in workers:
            worker.start()
        for worker in workers:
            worker.join()
        return [result for result in results if result is not None]

    threaded = patched.clone()
    threaded.set_model_sampler_calc_cond_batch_function(in_threads)
    latents = stage(threaded, t2v_experts, empty(), steps=STEPS, end=SPLIT)["samples"]
    handle.remove()
    assert len(threads) >= 2
    assert_same(latents, expected)
    assert "forward" not in vars(high.model.diffusion_model.rope_embedder)


def test_two_prompts_in_sequence(t2v_experts: Experts) -> None:
    """Each run lies in its sampler's options, so nothing of one is left for the next."""
    high = shifted(t2v_experts.high)
    models = [patch_model(high, "interleave"), patch_model(high, "merge", stride=3), high]
    alone = [stage(model, t2v_experts, empty(), steps=STEPS, end=SPLIT)["samples"] for model in models]
    for model, latents in zip(models[::-1] * 2, alone[::-1] * 2, strict=True):
        assert torch.equal(stage(model, t2v_experts, empty(), steps=STEPS, end=SPLIT)["samples"], latents)


def test_memory_is_planned_for_the_computed_frames(
    t2v_experts: Experts, comfy: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    high = shifted(t2v_experts.high)
    shapes: list[list[int]] = []
    original = comfy.comfy.sampler_helpers.estimate_memory

    def watch(model: Any, noise_shape: Any, *args: Any, **kwargs: Any) -> Any:
        shapes.append(list(noise_shape))
        return original(model, noise_shape, *args, **kwargs)

    monkeypatch.setattr(comfy.comfy.sampler_helpers, "estimate_memory", watch)
    for model in (high, patch_model(high, "interpolate"), patch_model(high, "interpolate", until=1)):
        stage(model, t2v_experts, empty(), steps=STEPS, end=SPLIT)
    assert [shape[2] for shape in shapes] == [LATENT_FRAMES, 5, LATENT_FRAMES]
