"""`patch_model`: a clone of a model with wrappers around its sampler, predictions, calls and memory estimate."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from contextlib import closing
from typing import Any

import torch
from torch import Tensor

from halfframe.errors import HalfframeError, OptionError, one_of
from halfframe.hosts.comfyui.refusals import (
    refuse_guidance,
    refuse_model,
    refuse_run,
    refuse_unmirrored,
    same_after_switch,
)
from halfframe.hosts.comfyui.sampling import ComfyRun, conditioning_frames
from halfframe.hosts.comfyui.steps import Table, placed_in, run_steps, within
from halfframe.plugins.configuration import Configuration, configure
from halfframe.plugins.strategies import DEFAULT_STRATEGY, StrategyLike
from halfframe.report.cost import ExpertShape
from halfframe.sampling.frames import TIME_DIM
from halfframe.sampling.guidance import Guidance
from halfframe.sampling.host import HostFacts, NoiseSource
from halfframe.sampling.run import SamplingRun
from halfframe.sampling.strategy import Expert, Step
from halfframe.strategies.recipe import Recipe

__all__ = ["patch_model"]

KEY = "halfframe"
_BOUNDARIES = {16: 875.0, 36: 900.0}
"""Timestep down to which the high-noise expert was trained, by the model's channels: text- and image-to-video."""


def patch_model(
    model: Any,
    strategy: StrategyLike = DEFAULT_STRATEGY,
    *,
    guidance: Guidance | None = None,
    start_percent: float = 0.0,
    end_percent: float = 1.0,
    expert: Expert = "high",
    measure: bool = False,
    plugins: Iterable[object] = (),
    **options: Any,
) -> Any:
    """A clone of a ComfyUI model whose samplers compute only part of the latent frames; `model` stays as it is.

    Patch the high-noise model, after LoRA and ModelSamplingSD3. Its high-noise steps are those down to sigma 0.85; at
    others all frames are computed unless the strategy says otherwise (``until="end"``). A model that was patched before
    gets the new settings in place of the old.

    Args:
        model: a ``ModelPatcher`` of Wan2.2 A14B, text-to-video or image-to-video.
        strategy: as for `halfframe.enabled`.
        guidance: as for `halfframe.enabled`; its last steps are those of the sampler.
        start_percent: where in the schedule the strategy begins, 0..1, as ComfyUI's nodes count.
        end_percent: where it ends.
        expert: which of the two experts `model` is; ``"low"`` for the second model of a recipe.
        measure: as for `halfframe.enabled`.
        plugins: as for `halfframe.enabled`.
        **options: the strategy's own.

    Returns:
        The clone.

    Raises:
        UnsupportedPipelineError: `model` is of another kind.
        OptionError: an unusable option.
        HalfframeError: from within a run, something that does not go together; the message names the node to change.
    """
    one_of("expert", expert, Expert)
    for name, value in (("start_percent", start_percent), ("end_percent", end_percent)):
        if not (isinstance(value, int | float) and 0 <= value <= 1):
            raise OptionError(f"{name} must be a number in 0..1, got {value!r}.")
    if start_percent >= end_percent:
        raise OptionError(f"start_percent must be less than end_percent, got {start_percent} and {end_percent}.")
    configuration = configure(strategy, guidance=guidance, measure=measure, plugins=plugins, **options)
    refuse_model(model)

    from comfy.patcher_extension import WrappersMP

    patched = model.clone()
    wrappers = _Wrappers(configuration, expert, start_percent, end_percent)
    for kind, wrapper in (
        (WrappersMP.OUTER_SAMPLE, wrappers.sample),
        (WrappersMP.PREPARE_SAMPLING, _prepare),
        (WrappersMP.PREDICT_NOISE, _predict),
        (WrappersMP.APPLY_MODEL, _call),
    ):
        patched.remove_wrappers_with_key(kind, KEY)
        patched.add_wrapper_with_key(kind, KEY, wrapper)
    return patched


class _Wrappers:
    """What goes around a sampler's run; the run itself lies in the options that ComfyUI passes on from there."""

    def __init__(self, configuration: Configuration, expert: Expert, start_percent: float, end_percent: float) -> None:
        self._configuration = configuration
        self._expert = expert
        self._percent = (start_percent, end_percent)

    def sample(
        self,
        executor: Any,
        noise: Tensor,
        latent_image: Tensor,
        sampler: Any,
        sigmas: Tensor,
        *args: Any,
        **kwargs: Any,
    ) -> Tensor:
        """ComfyUI's OUTER_SAMPLE."""
        guider = executor.class_obj
        masked = kwargs.get("denoise_mask", args[0] if args else None) is not None
        seed = kwargs.get("seed", args[3] if len(args) > 3 else None)
        usual = guider.model_options
        transformer: Mapping[str, Any] = usual.get("transformer_options", {})
        with closing(self._begin(guider, noise, latent_image, sigmas, masked)) as run:
            refuse_run(transformer, run.schedule)
            noise = _allocated(run.run, noise, seed)
            guider.model_options = {**usual, "transformer_options": {**transformer, KEY: run}}
            try:
                samples = executor(noise, latent_image, sampler, sigmas, *args, **kwargs)
            finally:
                guider.model_options = usual
            model = guider.model_patcher.model
            samples = _switched(run, model, samples)
            if run.table.end == 0:
                self._configuration.hooks.hook.halfframe_latents(latents=model.process_latent_in(samples))
            # A recipe may leave the steps of one of its models whole.
            part = isinstance(self._configuration.strategy, Recipe)
            run.run.announce(run.run.report(), not part or run.skips, not part or run.truncates)
            return samples

    def _begin(self, guider: Any, noise: Tensor, latent_image: Tensor, sigmas: Tensor, masked: bool) -> ComfyRun:
        if noise.ndim != 5 or len(sigmas) < 2:
            raise HalfframeError(
                f"a sampler was started on latents of shape {tuple(noise.shape)} with {len(sigmas)} sigmas; needed: "
                "video latents (B, C, F, H, W) and 2 sigmas or more. Remove the Halfframe node from its model."
            )
        chosen = self._configuration
        table = Table(tuple(float(sigma) for sigma in sigmas.tolist()))
        facts = _facts(guider.model_patcher.model.diffusion_model, guider.conds)
        count = noise.shape[TIME_DIM]
        conditioning = facts.conditioning_frames
        like = Step(0, 0, 0.0, 0.0, "high", 0, 0, count, facts.boundary, facts.conditioned, conditioning)
        steps = run_steps(table, self._expert, like)
        if isinstance(chosen.strategy, Recipe):
            steps = placed_in(chosen.strategy, steps, self._expert)
        refuse_guidance(chosen.guidance, table.end)
        strategy = within(chosen.strategy, guider.model_patcher.get_model_object("model_sampling"), *self._percent)
        core = SamplingRun(facts, strategy, chosen.guidance, chosen.hooks.hook, chosen.measure)
        schedule = core.follow(steps)
        core.passes.remembers = 0  # what is reused here is the guided prediction
        frame_numbers = torch.arange(count, dtype=noise.dtype)[:, None, None].expand(noise.shape)
        mirrors = schedule.maps and not same_after_switch(strategy, frame_numbers)
        if mirrors:
            refuse_unmirrored(strategy, schedule, latent_image, masked)
        return ComfyRun(core, schedule, table, chosen.guidance, mirrors)


def _prepare(executor: Any, model: Any, noise_shape: Any, conds: Any, *args: Any, **kwargs: Any) -> Any:
    """ComfyUI's PREPARE_SAMPLING: memory is planned for the frames that are computed at once."""
    run = _run_in(kwargs.get("model_options") or {})
    if run is not None and "context_handler" not in kwargs["model_options"]:
        noise_shape = list(noise_shape)
        noise_shape[TIME_DIM] = run.most_frames
    return executor(model, noise_shape, conds, *args, **kwargs)


def _predict(executor: Any, x: Tensor, timestep: Tensor, model_options: Any = None, seed: Any = None) -> Tensor:
    """ComfyUI's PREDICT_NOISE."""
    options = {} if model_options is None else model_options
    run = _run_in(options)
    if run is None:
        result: Tensor = executor(x, timestep, options, seed)
        return result
    return run.predict(executor, executor.class_obj, x, timestep, options, seed)


def _call(
    executor: Any,
    x: Tensor,
    t: Tensor,
    c_concat: Any = None,
    c_crossattn: Any = None,
    control: Any = None,
    transformer_options: Any = None,
    **more: Any,
) -> Tensor:
    """ComfyUI's APPLY_MODEL."""
    options = {} if transformer_options is None else transformer_options
    run: ComfyRun | None = options.get(KEY)
    if run is None:
        result: Tensor = executor(x, t, c_concat, c_crossattn, control, options, **more)
        return result
    return run.call(executor, executor.class_obj, x, t, c_concat, c_crossattn, control, options, **more)


def _run_in(model_options: Mapping[str, Any]) -> ComfyRun | None:
    run: ComfyRun | None = model_options.get("transformer_options", {}).get(KEY)
    return run


def _facts(network: Any, conditions: Mapping[str, Any]) -> HostFacts:
    """What the core wants to know of a model and what it is given."""
    channels = int(network.patch_embedding.weight.shape[1])
    conditioned = channels > 16
    masks = [c["concat_mask"] for cs in conditions.values() for c in cs or () if c.get("concat_mask") is not None]
    own = {position for mask in masks for position in conditioning_frames(1 - mask)} if conditioned else set()
    block = network.blocks[0]
    return HostFacts(
        name="comfyui",
        boundary=_BOUNDARIES[channels],
        expert_shape=ExpertShape(network.dim, block.ffn[0].out_features, len(network.blocks)),
        conditioning_frames=tuple(sorted(own)),
        conditioned=conditioned,
        never_high=(
            "no step of this sampler is a high-noise one (sigma 0.85 or more, in a run that starts at 0.9 or more); "
            "connect Halfframe to the high-noise model, or set until='end' for low-noise steps"
        ),
    )


def _allocated(run: SamplingRun, noise: Tensor, seed: int | None) -> Tensor:
    """The noise to start from; a run that goes on from another's latents has none."""
    if not noise.any():
        return noise

    def draw(shape: tuple[int, ...]) -> Tensor:
        if shape == tuple(noise.shape):
            return noise
        if seed is None:
            raise OptionError("noise='short' needs a seed, and this sampler has none; leave noise at 'full'.")
        generator = torch.Generator().manual_seed(seed)  # as ComfyUI draws
        return torch.randn(shape, generator=generator, dtype=noise.dtype).to(noise.device)

    return run.allocate(tuple(noise.shape), NoiseSource(draw, (), noise.dtype, noise.device))


def _switched(run: ComfyRun, model: Any, samples: Tensor) -> Tensor:
    """What the next sampler goes on from, where this one was the high-noise model's.

    ComfyUI hands on ``process_out(x / (1 - sigma))`` of the latents x.
    """
    if run.schedule.steps[-1].expert != "high" or not run.schedule.maps:
        return samples
    clean = 1 - run.table.end
    latents = model.process_latent_in(samples) * clean
    switched = run.run.switch_now(latents, run.table.end)
    if torch.equal(switched, latents):
        return samples
    result: Tensor = model.process_latent_out(switched / clean)
    return result
