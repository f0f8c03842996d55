"""What halfframe does not do in ComfyUI, and which node to change."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from halfframe.errors import HalfframeError, OptionError, UnsupportedPipelineError
from halfframe.sampling.frame_map import FrameMap
from halfframe.sampling.guidance import Delta, Guidance, GuidancePlan, GuidanceRule
from halfframe.sampling.schedule import Schedule
from halfframe.sampling.strategy import Strategy

__all__ = [
    "model_refusal",
    "refuse_call",
    "refuse_guidance",
    "refuse_guider",
    "refuse_model",
    "refuse_run",
    "refuse_unmirrored",
    "refuse_window",
    "same_after_switch",
]

_IGNORED = frozenset({"clip_fea", "crossattn_controlnet", "reference_latent"})
"""Conditions that do not go with the frames; these models ignore the last two."""


def refuse_model(model: Any) -> None:
    """Raise unless `model` is a ``ModelPatcher`` of a two-expert Wan model.

    Raises:
        UnsupportedPipelineError: it is not; the message names the node.
    """
    reason = model_refusal(model)
    if reason:
        raise UnsupportedPipelineError(f"Halfframe cannot serve this model: {reason}")


def model_refusal(model: Any) -> str | None:
    """Why `model` cannot be served, with what to do about it; None if it can."""
    from comfy.model_base import WAN21

    base: Any = getattr(model, "model", None)
    if type(base) is not WAN21:
        return (
            f"it is a {type(base).__name__}, needed is ComfyUI's WAN21, as the two models of Wan2.2 A14B are "
            "(text-to-video or image-to-video; not 5B, VACE, Camera, HuMo, Animate or S2V). Connect the model that is "
            "loaded from a wan2.2_..._high_noise_14B file."
        )
    network = base.diffusion_model
    channels = int(network.patch_embedding.weight.shape[1])
    if channels not in (16, 36):
        return (
            f"it takes {channels} channels, as Fun Control models do; needed: 16 (text-to-video) or 36 "
            "(image-to-video)."
        )
    if getattr(network, "ref_conv", None) is not None:
        return "it takes a reference image as a frame of its own (ref_conv); use the plain A14B models."
    frames, *_ = network.patch_size
    if frames != 1:
        return f"its patch size {tuple(network.patch_size)} spans several latent frames; needed: (1, h, w)."
    return None


def refuse_run(options: Mapping[str, Any], schedule: Schedule) -> None:
    """Raise where another acceleration node keeps what belongs to other frames."""
    cache = options.get("easycache")
    maps = {move if isinstance(move, FrameMap) else None for move in schedule.moves}
    if cache is not None and getattr(cache, "name", "") == "EasyCache" and len(maps) > 1:
        raise HalfframeError(
            "EasyCache keeps what the model computed for its next step, but Halfframe has it compute other frames "
            "there. Remove the EasyCache node, or choose 'interpolate' for all steps of the sampler."
        )


def refuse_guidance(plan: GuidancePlan, end: float) -> None:
    """Raise where the schedule's last steps are asked for and the run does not make them."""
    if isinstance(plan, Guidance) and plan.skip_last and end > 0:
        raise OptionError(
            f"skip_last={plan.skip_last} counts the schedule's last steps, and this sampler ends at sigma {end:.3g}. "
            "Give it to the low-noise model, or give skip_last_high to this one."
        )


def same_after_switch(strategy: Strategy, latents: Tensor) -> bool:
    """Whether the expert switch leaves `latents` ``(B, C, F, H, W)`` as they are."""
    return torch.equal(strategy.at_switch(latents.clone()), latents)


def refuse_unmirrored(strategy: Strategy, schedule: Schedule, latent_image: Tensor, masked: bool) -> None:
    """Raise where a strategy that acts at the expert switch cannot: its skipped frames are no frames of their own."""
    if any(step.expert == "low" for step in schedule.steps):
        raise HalfframeError(
            f"strategy {strategy.name!r} acts at the expert switch, but one sampler makes high- and low-noise steps. "
            "Use two samplers (KSamplerAdvanced, or SplitSigmas), or choose 'interleave' in the Halfframe node."
        )
    if masked or (latent_image.any() and not same_after_switch(strategy, latent_image)):
        found = "with a mask" if masked else "from latents that are not empty"
        raise HalfframeError(
            f"strategy {strategy.name!r} needs noise of its own in every frame that it skips, but the sampler starts "
            f"{found}. Connect an empty latent, or choose 'interleave' in the Halfframe node."
        )


def refuse_call(control: Any, options: Mapping[str, Any], conditions: Mapping[str, Any]) -> None:
    """Raise where a model call brings something that goes with the frames and that halfframe cannot cut."""
    seen = sorted(name for name, value in conditions.items() if value is not None and name not in _IGNORED)
    if control is not None:
        seen.append("a ControlNet")
    if (options.get("patches") or {}).get("double_block"):
        seen.append("block patches (Uni3C, InfiniteTalk)")
    if seen:
        raise HalfframeError(
            f"the model is given {', '.join(seen)}, which may go with the frames, and Halfframe cannot cut it. Remove "
            "the node that adds it, or Halfframe."
        )


def refuse_guider(guider: Any, options: Mapping[str, Any], rule: GuidanceRule) -> None:
    """Raise where the unconditional pass cannot be left out as the guidance formula has it."""
    from comfy.samplers import CFGGuider

    if type(guider).predict_noise is not CFGGuider.predict_noise:
        raise HalfframeError(
            f"skipping guidance needs ComfyUI's own formula, but the guider is a {type(guider).__name__}. Use "
            "KSamplerAdvanced or a CFGGuider node, or set skip_guidance to 0 in the Halfframe node."
        )
    if isinstance(rule, Delta) and "sampler_cfg_function" in options:
        raise HalfframeError(
            "reusing the guidance difference needs ComfyUI's own formula, but a node (RescaleCFG or one like it) "
            "brings another. Remove that node, or use the mode 'conditional'."
        )


def refuse_window(window: Any, count: int, mirrors: bool) -> None:
    """Raise where a context window does not begin with a computed frame, for strategies that mirror frames."""
    if not mirrors or window is None:
        return
    positions = list(window.index_list)
    if positions[0] % 2 or positions != list(range(positions[0], positions[0] + count)):
        raise HalfframeError(
            f"a context window has frames {positions}, but this strategy computes even frames and mirrors them. Choose "
            "'interleave' in the Halfframe node, or in Context Windows an even length minus overlap, "
            "stride 1 and no causal fix."
        )
