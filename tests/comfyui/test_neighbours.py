"""What else a workflow does to a model: LoRA, windows, compilation, other weights, batches, interrupts, queues."""

from __future__ import annotations

import logging
import threading
from typing import Any

import pytest
import torch
from torch import Tensor

import halfframe
from halfframe.hosts.comfyui import patch_model

from .experts import (
    LATENT_FRAMES,
    Experts,
    assert_same,
    comfy_model,
    image_conditions,
    normalised,
    official_latents,
)
from .graphs import with_lora
from .sampling import SEED, call, custom, empty, shifted, stage, table, two_stages

STEPS, SPLIT = 4, 2
STRATEGIES = ("self-duplicate", "interleave", "merge")


def plain_and_patched(experts: Experts, strategy: str = "interleave", **options: Any) -> tuple[Any, Any]:
    high = shifted(experts.high)
    return high, patch_model(high, strategy, **options)


@pytest.mark.parametrize("strategy", [*STRATEGIES, None])
@pytest.mark.filterwarnings("ignore:halfframe. nothing was skipped")
def test_the_model_itself_stays_as_it_was(t2v_experts: Experts, strategy: Any) -> None:
    high, low = shifted(t2v_experts.high), shifted(t2v_experts.low)
    before = two_stages(high, low, t2v_experts, steps=STEPS, split=SPLIT)
    network = high.model.diffusion_model
    own = {name: dict(vars(module)) for name, module in network.named_modules()}
    patched = patch_model(high, strategy)
    wrappers, options = dict(high.wrappers), dict(high.model_options)
    assert patched is not high
    two_stages(patched, low, t2v_experts, steps=STEPS, split=SPLIT)
    assert torch.equal(two_stages(high, low, t2v_experts, steps=STEPS, split=SPLIT), before)
    assert (high.wrappers, high.model_options) == (wrappers, options)
    for name, module in network.named_modules():
        assert vars(module).keys() == own[name].keys(), name
    again = two_stages(patched, low, t2v_experts, steps=STEPS, split=SPLIT)
    assert torch.equal(again, before) == (strategy is None)


@pytest.mark.parametrize("batched", [True, False])
def test_conditional_and_unconditional_together_or_apart(
    t2v_experts: Experts, monkeypatch: pytest.MonkeyPatch, batched: bool
) -> None:
    high, patched = plain_and_patched(t2v_experts)
    seen: list[int] = []
    handle = high.model.diffusion_model.patch_embedding.register_forward_pre_hook(
        lambda _, args: seen.append(args[0].shape[0])
    )
    expected = stage(patched, t2v_experts, empty(), steps=STEPS, end=SPLIT)["samples"]
    usual = seen.copy()
    # ComfyUI batches the two where the memory for twice the input is free.
    needed = 0 if batched else 1e15
    monkeypatch.setattr(high.model, "memory_required", lambda *_, **__: needed)
    seen.clear()
    latents = stage(patched, t2v_experts, empty(), steps=STEPS, end=SPLIT)["samples"]
    handle.remove()
    assert usual
    assert seen == ([2] * SPLIT if batched else [1] * 2 * SPLIT)
    assert_same(latents, expected)


def test_several_clips_in_a_batch(t2v_experts: Experts) -> None:
    _, patched = plain_and_patched(t2v_experts)
    one = stage(patched, t2v_experts, empty(), steps=STEPS, end=SPLIT)["samples"]
    two = stage(patched, t2v_experts, empty(batch=2), steps=STEPS, end=SPLIT)["samples"]
    assert two.shape[0] == 2
    assert_same(two[:1], one)
    assert not torch.allclose(two[1:], one, atol=1e-2)


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_lora_before_and_after(t2v_experts: Experts, strategy: str) -> None:
    high, low = shifted(t2v_experts.high), shifted(t2v_experts.low)
    before = patch_model(with_lora(high, 1.0), strategy)
    after = with_lora(patch_model(high, strategy), 1.0)
    latents = two_stages(before, low, t2v_experts, steps=STEPS, split=SPLIT)
    assert torch.equal(two_stages(after, low, t2v_experts, steps=STEPS, split=SPLIT), latents)
    without = two_stages(patch_model(high, strategy), low, t2v_experts, steps=STEPS, split=SPLIT)
    assert not torch.allclose(latents, without, atol=1e-3)


def test_used_twice_the_later_settings_hold(t2v_experts: Experts) -> None:
    high, first = plain_and_patched(t2v_experts, "self-duplicate")
    twice = patch_model(first, "interleave", stride=3)
    latents = stage(twice, t2v_experts, empty(), steps=STEPS, end=SPLIT)["samples"]
    once = patch_model(high, "interleave", stride=3)
    assert torch.equal(latents, stage(once, t2v_experts, empty(), steps=STEPS, end=SPLIT)["samples"])
    assert {len(w["halfframe"]) for w in twice.wrappers.values()} == {1}


@pytest.mark.parametrize("strategy", ["self-duplicate", "merge"])
def test_compiled(t2v_experts: Experts, comfy: Any, strategy: str) -> None:
    """Of the backends, "eager" traces and runs what it traced, without a compiler; the tracing is the trap."""
    high, patched = plain_and_patched(t2v_experts, strategy)
    expected = stage(patched, t2v_experts, empty(), steps=STEPS, end=SPLIT)["samples"]
    torch._dynamo.reset()
    from comfy_api.torch_helpers import set_torch_compile_wrapper

    for model in (patched, high):
        compiled = model.clone()
        set_torch_compile_wrapper(compiled, backend="eager")
        if model is high:
            compiled = patch_model(compiled, strategy)
        latents = stage(compiled, t2v_experts, empty(), steps=STEPS, end=SPLIT)["samples"]
        assert_same(latents, expected)
        assert_same(stage(compiled, t2v_experts, empty(), steps=STEPS, end=SPLIT)["samples"], expected)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float8_e4m3fn], ids=str)
@pytest.mark.parametrize("strategy", ["self-duplicate", "merge"])
def test_other_weights(t2v_experts: Experts, dtype: torch.dtype, strategy: str) -> None:
    """Close to what full precision gives; the fractional positions of merge have no place in half precision."""
    high = t2v_experts.high
    model = shifted(comfy_model(t2v_experts.pipe.high_noise_model, dtype))
    assert model.model.diffusion_model.blocks[0].self_attn.q.weight.dtype == dtype
    latents = stage(patch_model(model, strategy), t2v_experts, empty(), steps=STEPS, end=SPLIT)["samples"]
    expected = stage(patch_model(shifted(high), strategy), t2v_experts, empty(), steps=STEPS, end=SPLIT)["samples"]
    plain = stage(shifted(high), t2v_experts, empty(), steps=STEPS, end=SPLIT)["samples"]
    assert (latents - expected).norm() < 0.3 * (plain - expected).norm()


class Windows:
    """Context windows as the node *WAN Context Windows* sets them, over latent frames."""

    def __init__(self, comfy: Any, length: int, overlap: int) -> None:
        self._node = comfy.nodes_context_windows.ContextWindowsManualNode
        self._settings: dict[str, Any] = {
            "context_length": length,
            "context_overlap": overlap,
            "context_schedule": "standard_static",
            "context_stride": 1,
            "closed_loop": False,
            "fuse_method": "pyramid",
            "dim": 2,
        }
        known = self._node.INPUT_TYPES()["required"]
        newer = {"freenoise": False, "causal_window_fix": False}
        self._settings |= {name: value for name, value in newer.items() if name in known}

    def on(self, model: Any) -> Any:
        return call(self._node, model=model, **self._settings)[0]


@pytest.mark.parametrize("strategy", ["interleave", "interpolate", "merge", "self-duplicate"])
def test_context_windows(t2v_experts: Experts, comfy: Any, strategy: str) -> None:
    high, patched = plain_and_patched(t2v_experts, strategy)
    windows = Windows(comfy, 5, 1)
    seen: list[int] = []
    handle = high.model.diffusion_model.patch_embedding.register_forward_pre_hook(
        lambda _, args: seen.append(args[0].shape[2])
    )
    latents = stage(windows.on(patched), t2v_experts, empty(), steps=STEPS, end=SPLIT)["samples"]
    handle.remove()
    assert set(seen) == {3}
    assert torch.equal(
        stage(patch_model(windows.on(high), strategy), t2v_experts, empty(), steps=STEPS, end=SPLIT)["samples"], latents
    )
    whole = stage(patched, t2v_experts, empty(), steps=STEPS, end=SPLIT)["samples"]
    assert not torch.allclose(latents, whole, atol=1e-3)
    if strategy == "self-duplicate":
        short = custom(
            windows_of_half(comfy, high),
            t2v_experts,
            empty(frames=5),
            table(high, STEPS)[: SPLIT + 1],
            noise=torch.randn(1, 16, LATENT_FRAMES, 4, 6, generator=torch.Generator().manual_seed(SEED))[:, :, ::2],
        )["samples"]
        assert short.isfinite().all()


def windows_of_half(comfy: Any, model: Any) -> Any:
    return Windows(comfy, 3, 1).on(model)


def test_context_windows_that_begin_between_two_computed_frames(t2v_experts: Experts, comfy: Any) -> None:
    _, patched = plain_and_patched(t2v_experts, "self-duplicate")
    model = Windows(comfy, 4, 1).on(patched)
    with pytest.raises(halfframe.HalfframeError, match="Context Windows"):
        stage(model, t2v_experts, empty(), steps=STEPS, end=SPLIT)


def test_first_and_last_frame(i2v_experts: Experts) -> None:
    """The last frame has an image of its own and is computed at every step, whatever the strategy says."""
    high, low = shifted(i2v_experts.high), shifted(i2v_experts.low)
    conditions = i2v_experts.conditions(**image_conditions(i2v_experts.pipe, 29, last=True))
    calls = Calls()
    patched = patch_model(high, "interleave", plugins=[calls])
    latents = two_stages(patched, low, i2v_experts, steps=8, split=4, latent=empty(frames=8), conditions=conditions)
    kept = [call.frame_map.kept for call in calls.seen if call.number == 0]
    assert kept == [(0, 2, 4, 6, 7), (0, 1, 3, 5, 7)] * 2
    assert latents.isfinite().all()
    # On the last frame the velocity is the expert's own: a plain run of those frames at these positions would give it.
    merged = two_stages(
        patch_model(high, "merge"), low, i2v_experts, steps=8, split=4, latent=empty(frames=8), conditions=conditions
    )
    assert torch.equal(merged, latents)  # no expert knows a mean of images


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


def test_lazycache(t2v_experts: Experts, comfy: Any) -> None:
    """It skips whole steps, of all frames, so it may stand beside maps that change."""
    high = shifted(t2v_experts.high)
    settings = {"reuse_threshold": 0.0, "start_percent": 0.1, "end_percent": 0.95, "verbose": False}
    (cached,) = call(comfy.nodes_easycache.LazyCacheNode, model=high, **settings)
    latents = stage(patch_model(cached, "interleave"), t2v_experts, empty(), steps=STEPS, end=SPLIT)["samples"]
    expected = stage(patch_model(high, "interleave"), t2v_experts, empty(), steps=STEPS, end=SPLIT)["samples"]
    assert torch.equal(latents, expected)
    (eager,) = call(comfy.nodes_easycache.LazyCacheNode, model=high, **{**settings, "reuse_threshold": 1e9})
    skipped = stage(patch_model(eager, "interleave"), t2v_experts, empty(), steps=8, end=5)["samples"]
    assert skipped.isfinite().all()
    assert not torch.allclose(
        skipped, stage(patch_model(high, "interleave"), t2v_experts, empty(), steps=8, end=5)["samples"], atol=1e-3
    )


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


def test_rope_options_of_another_node(t2v_experts: Experts) -> None:
    """A node that stretches the time axis stretches it for the computed frames too."""
    high = shifted(t2v_experts.high).clone()
    if not hasattr(high, "set_model_rope_options"):
        pytest.skip("this ComfyUI has no such node")
    stretched = high.clone()
    stretched.set_model_rope_options(1.0, 0.0, 1.0, 0.0, 2.0, 3.0)
    seen: list[Tensor] = []
    embedder = high.model.diffusion_model.rope_embedder
    handle = embedder.register_forward_hook(lambda _, args, out: seen.append(out))
    try:
        stage(patch_model(stretched, "interpolate"), t2v_experts, empty(), steps=STEPS, end=1)
        stage(stretched, t2v_experts, empty(), steps=STEPS, end=1)
    finally:
        handle.remove()
    rotations = [
        out.reshape(-1, LATENT_FRAMES if out.numel() > seen[0].numel() else 5, 6, *out.shape[-3:]) for out in seen
    ]
    torch.testing.assert_close(rotations[0][:, :], rotations[-1][:, ::2])


def test_short_noise_without_a_seed(t2v_experts: Experts) -> None:
    _, patched = plain_and_patched(t2v_experts, "self-duplicate", noise="short")
    sigmas = table(patched, STEPS)[: SPLIT + 1]
    with pytest.raises(halfframe.OptionError, match="seed"):
        custom(patched, t2v_experts, empty(), sigmas, noise=torch.randn(1, 16, 9, 4, 6), seed=None)


def test_more_frames_than_the_official_loop_needs_no_more(t2v_experts: Experts) -> None:
    """81 video frames, as most workflows have."""
    high, low = shifted(t2v_experts.high), shifted(t2v_experts.low)
    latents = two_stages(patch_model(high, "merge"), low, t2v_experts, steps=4, split=2, latent=empty(frames=21))
    with halfframe.enabled(t2v_experts.pipe, "merge"):
        expected = official_latents(t2v_experts.pipe, table(high, 4), 2, cfg=3.5, seed=SEED, frames=81)
    assert_same(normalised(latents)[0], expected)
