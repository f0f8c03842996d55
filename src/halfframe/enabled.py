"""``with halfframe.enabled(pipe):`` - connects host, strategy, hooks and patches, and undoes it."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from halfframe.errors import HalfframeError, OptionError
from halfframe.handle import EnabledPipe, handle_of, refuse_enabled
from halfframe.hosts import find_host
from halfframe.plugins.configuration import configure
from halfframe.plugins.strategies import DEFAULT_STRATEGY, StrategyLike
from halfframe.sampling.guidance import Guidance

__all__ = ["EnabledPipe", "disable", "enable", "enabled"]


def enabled(
    pipe: Any,
    strategy: StrategyLike = DEFAULT_STRATEGY,
    *,
    guidance: Guidance | None = None,
    measure: bool = False,
    plugins: Iterable[object] = (),
    wait: bool = False,
    **options: Any,
) -> EnabledPipe:
    """Make `pipe` faster within the ``with`` block: its high-noise expert computes only part of the latent frames.

    By default it does so on the first steps only, at noise levels of 0.99 and above, which keeps the take of a seed.
    Over the whole high-noise phase (``"interleave"``, ``"merge"``, ``"self-duplicate"``) it is much faster, but gives
    another take, with less motion.

    Call the pipeline as usual, any number of times. Only this instance is patched. It is restored exactly when the
    block is left, also after an exception. Source: half-frame generation for Wan2.2, https://github.com/pkucaoyuan/WAN_inference.

    Args:
        pipe: a two-expert pipeline: ``wan.text2video.WanT2V`` or ``wan.image2video.WanI2V``, or diffusers'
            ``WanPipeline`` or ``WanImageToVideoPipeline``, or a modular pipeline of its blocks for Wan2.2.
        strategy: what is computed at each step: the name of an installed strategy (see `halfframe.strategies`), with
            or without options (``"interleave:stride=3"``); a strategy object (``halfframe.Merge(stride=3, until=1)``);
            a `halfframe.Recipe` or the path of one (``"recipe.json"``); a function ``(latents, num_frames) ->
            latents`` with time at dim -3; or None for all frames, to truncate guidance only.
        guidance: which steps skip the unconditional forward pass; by default none.
        measure: time every forward pass of the experts, with device synchronisation; the report then has seconds.
        plugins: objects with `halfframe.hookimpl` functions, for this block, in addition to the installed ones.
        wait: calls from other threads wait for their turn, in order. By default a call is refused while the pipeline
            is generating.
        **options: options of the strategy, if it is given by name, class or function.

    Returns:
        A context manager; within the block, its ``report`` is that of the latest run.

    Raises:
        UnsupportedPipelineError: `pipe` has no expert switch, or is of a kind that halfframe does not know.
        StrategyError: the strategy is unknown, provided twice, or not a strategy. From within a run: it returned
            something of the wrong shape, dtype or device.
        PluginError: an installed plugin cannot be imported or registered.
        OptionError: an unknown option or an unusable value.
        HalfframeError: the pipeline is enabled already, or, from within a run, is generating already.
    """
    refuse_enabled(pipe)
    if not isinstance(wait, bool):
        raise OptionError(f"wait must be True or False, got {wait!r}.")
    configuration = configure(strategy, guidance=guidance, measure=measure, plugins=plugins, **options)
    host = find_host(pipe, configuration.hooks)
    return EnabledPipe(pipe, host, configuration, wait)


def enable(pipe: Any, strategy: StrategyLike = DEFAULT_STRATEGY, **settings: Any) -> EnabledPipe:
    """Switch halfframe on for `pipe` until `disable`, for servers and notebooks; takes the arguments of `enabled`."""
    handle = enabled(pipe, strategy, **settings)
    handle._switch_on()
    return handle


def disable(pipe: Any) -> None:
    """Switch halfframe off for a pipeline, after `enable`.

    Raises:
        HalfframeError: halfframe is not on for `pipe`, or a ``with`` block switched it on.
    """
    handle = handle_of(pipe)
    if handle is None or handle._state != "on":
        raise HalfframeError(f"halfframe is not on for this {type(pipe).__name__}; there is nothing to switch off.")
    if handle._by_with:
        raise HalfframeError(
            f"a `with halfframe.enabled(...)` block holds this {type(pipe).__name__}; leave the block instead."
        )
    handle._switch_off()
