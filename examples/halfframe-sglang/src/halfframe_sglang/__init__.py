"""halfframe in SGLang's diffusion server: one hook around the stage that calls a diffusers pipeline.

The strategy comes from the environment (``HALFFRAME_STRATEGY``), or for one request from ``halfframe`` among its
``diffusers_kwargs``, which goes first: a strategy as text, the path of a recipe, or ``"none"``. Without either the
server runs as if this package were not there.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Callable
from typing import Any

import halfframe

__all__ = ["VARIABLE", "around_forward", "register"]

VARIABLE = "HALFFRAME_STRATEGY"
_TARGET = "sglang.multimodal_gen.runtime.pipelines.diffusers_pipeline.DiffusersExecutionStage.forward"
_KEY = "halfframe"
_logger = logging.getLogger(__name__)


def register() -> None:
    """SGLang's entry point. A wrong strategy is an error of each request: here it would only be logged."""
    from sglang.multimodal_gen.runtime.platforms.plugins import HookRegistry, HookType

    HookRegistry.register(_TARGET, around_forward, HookType.AROUND)


def around_forward(original: Callable[..., Any], stage: Any, batch: Any, server_args: Any) -> Any:
    """``DiffusersExecutionStage.forward`` with halfframe on for the stage's pipeline, if that was asked for.

    Raises:
        UnsupportedPipelineError: latents are sharded over GPUs, or the pipeline is none that halfframe serves.
        HalfframeError: as `halfframe.enabled`.
    """
    arguments = (getattr(batch, "extra", None) or {}).get("diffusers_kwargs") or {}
    strategy = arguments.get(_KEY, os.environ.get(VARIABLE))
    if _KEY in arguments:  # the pipeline knows no such argument
        batch.extra["diffusers_kwargs"] = {name: value for name, value in arguments.items() if name != _KEY}
    if strategy in (None, "", "none"):
        return original(stage, batch, server_args)
    degree = getattr(server_args, "sp_degree", None) or 1
    if degree > 1 or getattr(batch, "did_sp_shard_latents", False):
        raise halfframe.UnsupportedPipelineError(
            f"latents are sharded over {degree} GPUs (sp_degree), each of which has only some of the frames that "
            f"halfframe skips; start the server with --sp-degree 1, or unset {VARIABLE}."
        )
    with halfframe.enabled(stage.diffusers_pipe, strategy, wait=True) as run:
        result = original(stage, batch, server_args)
    for report in run.reports:
        # The stage keeps Python's warnings to itself, so what they say is logged.
        _logger.log(logging.INFO if report.saved or report.guidance_truncated else logging.WARNING, "%s", report)
    return result
