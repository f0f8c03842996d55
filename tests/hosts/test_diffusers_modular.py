"""diffusers' unmodified modular pipelines with halfframe on: the classic pipelines' latents, bit for bit.

The usual version of diffusers has no blocks for Wan2.2; `test_versions.py` runs this file on one that has.
"""

from __future__ import annotations

import contextlib
import copy
import inspect
import threading
from collections.abc import Callable, Sequence
from typing import Any

import diffusers
import pytest
import torch
from torch import Tensor

import halfframe
from halfframe.testing import diffusers_modular, tiny_diffusers_i2v, tiny_diffusers_t2v

from ..helpers_diffusers import ARGS, PROMPT, SCHEDULERS, Seen, picture, run, seeded, state
from .plain_loop import diffusers_parts, straight, view_at

if not hasattr(diffusers, "Wan22Blocks"):
    pytest.skip(f"diffusers {diffusers.__version__} has no Wan22Blocks", allow_module_level=True)

CLASSIC: dict[str, Callable[..., Any]] = {"t2v": tiny_diffusers_t2v, "i2v": tiny_diffusers_i2v}
STRATEGIES = [info.name for info in halfframe.strategies() if info.name != "crossfade"]
RECIPE = halfframe.Recipe(
    ("merge:2", "full", "reuse", "interleave:2+cond", "merge:3+delta", "full", "full", "merge:2+delta")
)


@pytest.fixture(params=CLASSIC)
def classic(request: pytest.FixtureRequest) -> Any:
    return CLASSIC[request.param]()


def arguments(pipe: Any, **changes: Any) -> dict[str, Any]:
    given = {**ARGS, "output_type": "pt", "output": "latents", "generator": seeded(), **changes}
    return {**given, "image": picture()} if pipe.transformer.config.in_channels == 36 else given


def sample(modular: Any, **changes: Any) -> Any:
    """Final latents ``(B, 16, F, h, w)``, or what `output` says."""
    return modular(**arguments(modular, **changes))


def both(classic: Any, strategy: Any = None, **options: Any) -> tuple[Tensor, Tensor, Any, Any]:
    """Latents and reports of a classic pipeline, and of a modular one of the same parts."""
    with halfframe.enabled(classic, strategy, **options) as first:
        expected = run(classic)
    modular = diffusers_modular(classic)
    with halfframe.enabled(modular, strategy, **options) as second:
        latents = sample(modular)
    return latents, expected, second.report, first.report


def test_plain_runs_are_equal(classic: Any) -> None:
    assert torch.equal(sample(diffusers_modular(classic)), run(classic))


@pytest.mark.parametrize("strategy", [*STRATEGIES, "merge:until=1,stride=4", RECIPE], ids=str)
def test_every_strategy_gives_the_classic_pipelines_latents(classic: Any, strategy: Any) -> None:
    latents, expected, report, classic_report = both(classic, strategy)
    assert torch.equal(latents, expected)
    assert report.host == "diffusers-modular"
    assert (report.high, report.low, report.moves) == (classic_report.high, classic_report.low, classic_report.moves)
    assert not torch.equal(latents, run(classic))


@pytest.mark.parametrize("mode", ["conditional", "delta"])
def test_truncated_guidance(classic: Any, mode: Any) -> None:
    latents, expected, report, _ = both(classic, "merge", guidance=halfframe.Guidance(3, 2, 2, mode))
    assert torch.equal(latents, expected)
    assert report.guidance_truncated


@pytest.mark.parametrize("scheduler", ["dpm++", "euler"])
def test_schedulers(classic: Any, scheduler: str) -> None:
    """Not Heun: there the blocks themselves guide only as many passes as there are steps, so plain runs differ."""
    classic.scheduler = SCHEDULERS[scheduler]()
    latents, expected, *_ = both(classic, "merge")
    assert torch.equal(latents, expected)


def test_frames_that_each_expert_sees(classic: Any) -> None:
    modular = diffusers_modular(classic)
    seen = Seen(modular)
    with halfframe.enabled(modular, "self-duplicate"):
        sample(modular)
    high = sum(name == "transformer" for name, _ in seen.calls)
    assert seen.latent_frames == [("transformer", 3)] * high + [("transformer_2", 5)] * (16 - high)
    assert 0 < high < 16


def test_global_random_state_and_given_latents(classic: Any) -> None:
    modular = diffusers_modular(classic)
    torch.manual_seed(5)
    plain = sample(modular, generator=None)
    after = torch.rand(1)
    torch.manual_seed(5)
    with halfframe.enabled(modular):
        latents = sample(modular, generator=None)
        assert torch.equal(torch.rand(1), after)
        noise = torch.randn(plain.shape, generator=seeded(5))
        assert torch.equal(sample(modular, generator=None, latents=noise), latents)


def test_batches_and_video() -> None:
    classic = tiny_diffusers_t2v()
    modular = diffusers_modular(classic)
    two: dict[str, Any] = {"prompt": [PROMPT, "a cat"], "negative_prompt": ["blurry"] * 2}
    with halfframe.enabled(classic):
        expected, video = run(classic, **two), run(classic, output_type="pt")
    with halfframe.enabled(modular):
        assert torch.equal(sample(modular, **two), expected)
        assert torch.equal(sample(modular, output="videos"), video)


def test_encoding_and_denoising_apart() -> None:
    """The blocks' own way of working: encode once, keep the state, denoise."""
    classic = tiny_diffusers_i2v()
    with halfframe.enabled(classic):
        expected = run(classic)
    modular = diffusers_modular(classic)
    whole = modular.blocks
    core = whole.sub_blocks["denoise"].init_pipeline()
    names = [name for name in core.component_names if not name.startswith("guider")]
    core.update_components(
        boundary_ratio=0.9, guider=modular.guider, guider_2=modular.guider_2,
        **{name: getattr(modular, name) for name in names},
    )  # fmt: skip
    outputs = ["prompt_embeds", "negative_prompt_embeds", "image_condition_latents"]
    given = sample(modular, output=outputs)
    with halfframe.enabled(core) as enabled:
        latents = core(**given, num_frames=17, height=32, width=48, num_inference_steps=8, generator=seeded(),
                       output="latents")  # fmt: skip
    assert torch.equal(latents, expected)
    assert enabled.report is not None


def test_last_image_in_a_condition_made_before_is_always_shown() -> None:
    """Of 6 latent frames 0, 2 and 4 would be computed; the mask says that the last is given, so 5 is too."""
    modular = diffusers_modular(tiny_diffusers_i2v())
    condition = sample(modular, num_frames=21, output="image_condition_latents")
    for last, kept in ((0.0, 3), (1.0, 4)):
        condition[:, :4, -1] = last
        core = modular.blocks.sub_blocks["denoise"].init_pipeline()
        core.update_components(boundary_ratio=0.9, **{name: getattr(modular, name) for name in core.component_names})
        seen = Seen(core)
        given = sample(modular, num_frames=21, output=["prompt_embeds", "negative_prompt_embeds"])
        seen.calls.clear()
        with halfframe.enabled(core, "self-duplicate"):
            core(**given, image_condition_latents=condition, num_frames=21, height=32, width=48,
                 num_inference_steps=8, generator=seeded())  # fmt: skip
        assert {shape[2] for name, shape in seen.calls if name == "transformer"} == {kept}
        seen.take_off()


# Guiders.


def guiders(kind: str) -> list[Any]:
    layers = {"skip_layer_config": diffusers.LayerSkipConfig(indices=[1], fqn="blocks", skip_attention=False)}
    made: dict[str, Callable[[], Any]] = {
        "APG": lambda: diffusers.AdaptiveProjectedGuidance(3.0, adaptive_projected_guidance_momentum=-0.5),
        "zero*": lambda: diffusers.ClassifierFreeZeroStarGuidance(3.0, zero_init_steps=0),
        "TCFG": lambda: diffusers.TangentialClassifierFreeGuidance(3.0),
        "part of the run": lambda: diffusers.ClassifierFreeGuidance(3.0, start=0.2, stop=0.7),
        "three passes": lambda: diffusers.SkipLayerGuidance(3.0, 1.0, skip_layer_guidance_stop=1.0, **layers),
    }
    return [made[kind](), made[kind]()]


def guided_loop(pipe: Any, guiders: Sequence[Any], strategy: str) -> Tensor:
    """Final latents of a run whose passes are completed to the whole clip one by one, and then given to a guider."""
    parts = diffusers_parts(pipe, [PROMPT], num_frames=17, steps=8)
    latents = parts.noise(parts.frames)
    texts = (torch.zeros(1), torch.ones(1))  # tell the conditional pass from the other
    for i, t in enumerate(parts.scheduler.timesteps):
        high, sigma = bool(t >= parts.boundary), float(parts.scheduler.sigmas[i])
        model, guider = (pipe.transformer, guiders[0]) if high else (pipe.transformer_2, guiders[1])
        view = view_at(parts, strategy, i, sigma) if strategy else None
        guider.set_state(step=i, num_inference_steps=8, timestep=t)
        batches = guider.prepare_inputs({"text": texts})
        for batch in batches:
            guider.prepare_models(model)
            conditional = batch.text is texts[0]
            if view is None:
                batch.noise_pred = parts.predict(high, latents, None, t, None, conditional)
            else:
                factor = 1 - sigma + sigma * view.noise
                level = sigma * view.noise / factor
                given = view.of(latents) / factor
                moment = t if view.noise == 1 else t * (level / sigma)
                computed = parts.predict(high, given, None, moment, view.told, conditional)
                batch.noise_pred = (latents - straight(given - level * computed, view.places, parts.frames)) / sigma
            guider.cleanup_models(model)
        latents = parts.scheduler.step(guider(batches)[0], t, latents, return_dict=False)[0]
    return latents


@pytest.mark.parametrize("kind", ["APG", "zero*", "TCFG", "part of the run", "three passes"])
def test_other_guiders(kind: str) -> None:
    classic = tiny_diffusers_t2v()
    modular = diffusers_modular(classic)
    with torch.no_grad():
        plain, merged = (guided_loop(classic, guiders(kind), strategy) for strategy in ("", "merge"))
    modular.guider, modular.guider_2 = guiders(kind)
    torch.testing.assert_close(sample(modular), plain, rtol=0, atol=1e-4)  # the loop is the host's own
    modular.guider, modular.guider_2 = guiders(kind)
    with halfframe.enabled(modular, "merge") as enabled:
        latents = sample(modular)
    torch.testing.assert_close(latents, merged, rtol=0, atol=1e-3)
    assert (merged - plain).abs().max() > 0.1
    assert enabled.report is not None
    assert enabled.report.high is not None
    # Of six high-noise steps; layers are skipped from the second on, and the first and the last have no guidance.
    assert enabled.report.high.passes == {"three passes": 17, "part of the run": 10}.get(kind, 12)


@pytest.mark.parametrize("options", [{"guidance": halfframe.Guidance(skip_last=2)}, {"strategy": RECIPE}])
def test_other_guiders_have_no_stand_in_for_a_pass(options: dict[str, Any]) -> None:
    modular = diffusers_modular(tiny_diffusers_t2v())
    modular.guider_2 = guiders("APG")[0]
    message = "its guider_2 is a AdaptiveProjectedGuidance, for which no stand-in for the unconditional pass is known"
    with halfframe.enabled(modular, **options), pytest.raises(halfframe.OptionError, match=message):
        sample(modular)


def test_a_pass_that_an_earlier_step_did_not_make_cannot_be_reused() -> None:
    modular = diffusers_modular(tiny_diffusers_t2v())
    modular.guider = guiders("part of the run")[0]
    recipe = halfframe.Recipe(("full", "reuse", *["full"] * 6))
    with halfframe.enabled(modular, recipe), pytest.raises(halfframe.StrategyError, match="guide all steps or none"):
        sample(modular)


# Blocks of the user's own.


class Preview(diffusers.ModularPipelineBlocks):  # type: ignore[misc]
    """Calls an expert with two frames, outside of the denoiser, and ends the loop's last step by another one."""

    model_name = "wan"
    seen: Any = None

    @property
    def inputs(self) -> list[Any]:
        return []

    @torch.no_grad()
    def __call__(self, components: Any, block_state: Any, i: int, t: Tensor) -> tuple[Any, Any]:
        seen = components.transformer(
            hidden_states=block_state.latents[:, :, :2],
            timestep=t.expand(1),
            encoder_hidden_states=block_state.prompt_embeds,
            return_dict=False,
        )[0]
        assert seen.shape[2] == 2
        type(self).seen = (*(self.seen or ()), seen)
        return components, block_state


@pytest.mark.parametrize("place", [0, 3])
def test_what_another_block_of_the_loop_calls_is_not_the_loops_own(place: int) -> None:
    classic = tiny_diffusers_t2v()
    with halfframe.enabled(classic):
        expected = run(classic)
    modular = diffusers_modular(classic)
    modular._blocks.sub_blocks["denoise"].sub_blocks["denoise"].sub_blocks.insert("preview", Preview(), place)
    Preview.seen = None
    with halfframe.enabled(modular) as enabled:
        assert torch.equal(sample(modular), expected)
    assert len(Preview.seen) == 8
    assert enabled.report is not None
    assert enabled.report.high is not None
    assert enabled.report.low is not None
    assert enabled.report.high.passes + enabled.report.low.passes == 16


class Declared(Preview):
    """Says that it calls the experts, as the denoiser does."""

    @property
    def expected_components(self) -> list[Any]:
        return [diffusers.ComponentSpec("transformer_2", diffusers.WanTransformer3DModel)]


def test_refusals() -> None:
    def made() -> Any:
        return diffusers_modular(tiny_diffusers_t2v())

    def refuse(modular: Any, match: str) -> None:
        with pytest.raises(halfframe.UnsupportedPipelineError, match=match):
            halfframe.enabled(modular)

    modular = made()
    modular._blocks.sub_blocks["denoise"].sub_blocks["denoise"].sub_blocks.insert("preview", Declared(), 0)
    refuse(modular, "2 blocks of one loop call the experts, preview and denoiser; which call is the step's own")
    modular = made()
    modular._blocks.sub_blocks["denoise"].sub_blocks.pop("prepare_latents")
    refuse(modular, "none of its blocks has prepare_latents, so halfframe does not know its sampling loop")
    modular = made()
    modular.update_components(boundary_ratio=None)
    refuse(modular, "it has no boundary_ratio, so there is no expert switch")
    modular = made()
    modular.transformer_2 = modular.transformer
    refuse(modular, "one module serves as both experts")
    refuse(diffusers.WanBlocks().init_pipeline(), "it has no transformer and no transformer_2 and no boundary_ratio")


# What is left behind.


def test_nothing_is_left_behind(classic: Any) -> None:
    modular = diffusers_modular(classic)

    def everything() -> list[Any]:
        def blocks(root: Any) -> list[Any]:
            below = [found for block in root.sub_blocks.values() for found in blocks(block)]
            return [(type(root), sorted(vars(root)), id(root.__dict__.get("prepare_latents"))), *below]

        return [state(modular), blocks(modular._blocks)]

    sample(modular)
    before, plain = everything(), sample(modular)
    with halfframe.enabled(modular):
        sample(modular)
    assert everything() == before

    class StopError(Exception):
        pass

    class Stopping:
        @halfframe.hookimpl
        def halfframe_expert_call(self, call: halfframe.ExpertCall) -> None:
            assert "number" in inspect.signature(halfframe.ExpertCall).parameters
            if call.step.index == 3:
                raise StopError

    with halfframe.enabled(modular, plugins=[Stopping()]), contextlib.suppress(StopError):
        sample(modular)
    assert everything() == before
    assert torch.equal(sample(modular), plain)


def test_copies_of_the_blocks_made_during_a_run_are_plain() -> None:
    modular = diffusers_modular(tiny_diffusers_t2v())
    plain = sample(modular)
    copies: list[Any] = []

    class Copying:
        @halfframe.hookimpl
        def halfframe_expert_call(self, call: halfframe.ExpertCall) -> None:
            if not copies:
                copies.append(copy.deepcopy(modular._blocks))

    with halfframe.enabled(modular, plugins=[Copying()]):
        sample(modular)
    other = copies[0].init_pipeline()
    other.update_components(boundary_ratio=0.875, **{name: getattr(modular, name) for name in other.component_names})
    assert torch.equal(sample(other), plain)


def test_two_pipelines_of_the_same_experts_in_two_threads() -> None:
    classic = tiny_diffusers_t2v()
    first, second = diffusers_modular(classic), diffusers_modular(classic)
    second.scheduler = copy.deepcopy(first.scheduler)
    with halfframe.enabled(first):
        expected = sample(first)
    plain = sample(second)
    outcome: dict[str, Tensor] = {}
    with halfframe.enabled(first):
        threads = [
            threading.Thread(target=lambda name=name, pipe=pipe: outcome.update({name: sample(pipe)}))
            for name, pipe in (("first", first), ("second", second))
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert torch.equal(outcome["first"], expected)
    assert torch.equal(outcome["second"], plain)


def test_doctor() -> None:
    found = {host.pipeline: host for host in halfframe.doctor().hosts}
    for name in ("diffusers.Wan22Blocks", "diffusers.Wan22Image2VideoBlocks"):
        assert found[name].verdict == "served"
        assert all(found[name].seams.values())
        assert len(found[name].seams) == 3
