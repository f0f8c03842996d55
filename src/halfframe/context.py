"""``with halfframe.enabled(pipe):`` - where host, strategy, hooks and patches are put together and taken apart."""

from __future__ import annotations

import logging
import threading
from collections.abc import Iterable, Iterator, Mapping
from contextlib import closing, contextmanager
from typing import Any

import pluggy

from halfframe.errors import HalfframeError, OptionError
from halfframe.guidance import GuidanceMode, GuidanceTruncation
from halfframe.hosts import BuiltinHosts, HostAdapter, find_host
from halfframe.patching import Patches
from halfframe.plugins import hook_manager, requested_strategy
from halfframe.presets import PresetName, find_preset
from halfframe.report import Report
from halfframe.run import SamplingRun
from halfframe.seams import HostFacts, Settings
from halfframe.strategies.base import NOISE_MODES, ExpandFunction, Noise, Strategy

__all__ = ["DEFAULT_STRATEGY", "EnabledPipe", "check_options", "chosen_by_preset", "enabled"]

DEFAULT_STRATEGY = "merge"
"""Nearest to the full run of those that cost as much (examples/tinywan/STUDY.md); the source's is `self-duplicate`."""

_logger = logging.getLogger(__name__)
_enabled: dict[int, EnabledPipe] = {}
_enabled_lock = threading.Lock()


class EnabledPipe:
    """A pipeline with halfframe on: what ``with halfframe.enabled(pipe) as run`` gives.

    Attributes:
        pipe: the pipeline.
        strategy: the strategy that serves its runs.
        reports: one report per finished run, oldest first.
    """

    def __init__(
        self, pipe: Any, host: HostAdapter, strategy: Strategy, hooks: pluggy.PluginManager, settings: Settings
    ) -> None:
        self.pipe = pipe
        self.strategy = strategy
        self.reports: list[Report] = []
        self._host = host
        self._hooks = hooks
        self._settings = settings
        self._patches = Patches()
        self._running = threading.Lock()
        self._runner: int | None = None

    @property
    def report(self) -> Report | None:
        """The report of the latest finished run; None before the first."""
        return self.reports[-1] if self.reports else None

    def _attach(self) -> None:
        with _enabled_lock:
            _refuse_enabled(self.pipe)
            _enabled[id(self.pipe)] = self
        try:
            self._host.attach(self.pipe, self._patches, self._start)
        except BaseException:
            self._detach()
            raise

    def _detach(self) -> None:
        """Undo the patches; a run that another thread is in the middle of is waited for."""
        waited = False
        try:
            if self._runner != threading.get_ident():
                waited = self._running.acquire()
        finally:  # even if the wait was interrupted; a run that goes on then undoes its own part when it ends
            try:
                self._patches.undo()
            finally:
                if waited:
                    self._running.release()
                with _enabled_lock:
                    _enabled.pop(id(self.pipe), None)

    @contextmanager
    def _start(self, facts: HostFacts) -> Iterator[SamplingRun]:
        if not self._running.acquire(blocking=False):
            raise HalfframeError(
                f"this {type(self.pipe).__name__} is generating already, in thread {self._runner}; a pipeline serves "
                "one run at a time. Wait for it, or build a second pipeline."
            )
        try:
            if not self._patches.active:
                raise HalfframeError(
                    f"the block that enabled this {type(self.pipe).__name__} was left while another thread was calling "
                    "it; call it again, or wait for the thread before leaving the block."
                )
            self._runner = threading.get_ident()
            with closing(SamplingRun(facts, self.strategy, self._hooks.hook, self._settings)) as run:
                yield run
                report = run.report()
                self.reports.append(report)
                run.announce(report)
        finally:
            self._runner = None
            self._running.release()


def _refuse_enabled(pipe: object) -> None:
    if id(pipe) in _enabled:
        raise HalfframeError(
            f"this {type(pipe).__name__} is enabled already; leave the outer `with halfframe.enabled(...)` block "
            "first, or change the options there."
        )


def _refuse_preload(host: HostAdapter, pipe: Any) -> None:
    known = hasattr(host, "preload_refusal")
    reason = host.preload_refusal(pipe) if known else f"the adapter {host.name!r} does not know how"
    if reason:
        raise OptionError(f"preload=True does not fit a {type(pipe).__name__}: {reason}; leave preload out.")


def check_options(
    strategy: str | Strategy | type[Strategy] | ExpandFunction | None = DEFAULT_STRATEGY,
    *,
    noise: Noise = "full",
    cfg_truncate_steps: int = 0,
    cfg_truncate_high_noise_steps: int = 0,
    cfg_mode: GuidanceMode = "conditional",
    cfg_every: int = 1,
    measure: bool = False,
    tflops: float | None = None,
    preload: bool = False,
    preset: PresetName | None = None,
    plugins: Iterable[object] = (),
    **options: Any,
) -> tuple[Strategy, pluggy.PluginManager, Settings]:
    """What `enabled` makes of its arguments, all but the pipeline; raises as it does."""
    if noise not in NOISE_MODES:
        raise OptionError(f"noise={noise!r} is unknown; needed: one of {', '.join(map(repr, NOISE_MODES))}.")
    if tflops is not None and not (isinstance(tflops, int | float) and tflops > 0):
        raise OptionError(f"tflops={tflops!r} is no rate; give the device's sustained TFLOP/s, or leave it out.")
    if not isinstance(preload, bool):
        raise OptionError(f"preload={preload!r} is neither True nor False.")
    if not isinstance(plugins, Iterable):
        raise OptionError(f"plugins={plugins!r} is no list of plugins; give plugins=[plugin].")
    guidance = asked = GuidanceTruncation(cfg_truncate_steps, cfg_truncate_high_noise_steps, cfg_mode, cfg_every)
    if preset is not None:
        strategy, options, guidance = chosen_by_preset(preset, strategy, options, guidance)
    settings = Settings(
        noise=noise,
        guidance=guidance,
        measure=measure,
        tflops=tflops,
        preload=preload,
        options=dict(options),
        guidance_by_preset=guidance != asked,
    )
    manager = hook_manager([*plugins, BuiltinHosts()])
    resolved = requested_strategy(strategy, options)
    resolved.check_noise(noise)
    return resolved, manager, settings


def chosen_by_preset(
    preset: PresetName, strategy: object, options: Mapping[str, Any], guidance: GuidanceTruncation
) -> tuple[str, dict[str, Any], GuidanceTruncation]:
    """The strategy, options and guidance that `preset` stands for, beside what else was asked for.

    Raises:
        OptionError: there is no such preset, or a strategy or its options were asked for as well.
    """
    chosen = find_preset(preset)
    # Every preset is of the default strategy, so whoever names that one beside a preset contradicts nothing.
    if options or strategy != DEFAULT_STRATEGY:
        given = ", ".join([*([] if strategy == DEFAULT_STRATEGY else [f"strategy={strategy!r}"]), *options])
        raise OptionError(f"preset={preset!r} sets the strategy and its options, so leave out {given}, or preset.")
    if not guidance:
        guidance = GuidanceTruncation(*chosen.guidance, guidance.mode)
    return chosen.strategy, dict(chosen.options), guidance


@contextmanager
def enabled(
    pipe: Any,
    strategy: str | Strategy | type[Strategy] | ExpandFunction | None = DEFAULT_STRATEGY,
    *,
    noise: Noise = "full",
    cfg_truncate_steps: int = 0,
    cfg_truncate_high_noise_steps: int = 0,
    cfg_mode: GuidanceMode = "conditional",
    cfg_every: int = 1,
    measure: bool = False,
    tflops: float | None = None,
    preload: bool = False,
    preset: PresetName | None = None,
    plugins: Iterable[object] = (),
    **options: Any,
) -> Iterator[EnabledPipe]:
    """Within the block, `pipe` computes only the kept latent frames while its high-noise expert runs.

    The pipeline is called as ever, any number of times. Only this instance is changed, and it is exactly as before once
    the block is left, however it is left. Source: half-frame generation for Wan2.2.

    Args:
        pipe: a two-expert pipeline: ``wan.text2video.WanT2V`` or ``wan.image2video.WanI2V``, or diffusers'
            ``WanPipeline`` or ``WanImageToVideoPipeline``.
        strategy: an installed strategy's name (see `halfframe.strategies`), a `halfframe.Strategy`, or a function
            ``(latents, num_frames) -> latents`` with time at dim -3; None computes all frames, for truncated guidance
            alone.
        noise: ``"full"`` draws the whole clip's noise as the host does and keeps the kept frames' part, so that a seed
            gives the composition that it gives without halfframe; ``"short"`` draws the kept frames only, as the
            source, and goes with its strategies and with functions.
        cfg_truncate_steps: the last so many steps of the schedule go without the unconditional forward.
        cfg_truncate_high_noise_steps: so do the last so many steps of the high-noise expert.
        cfg_mode: what the prediction is there: ``"conditional"`` is the conditional one, ``"reuse-delta"`` adds to it
            ``guidance scale - 1`` times the last guidance difference of the same expert, if there is one.
        cfg_every: of the steps that are not truncated, each expert's first and every so many after it have the
            unconditional forward; at those between, the last guidance difference stands in, whatever `cfg_mode` says.
        measure: time every forward of the experts, synchronising the device; `Report` then has seconds per expert.
        tflops: sustained rate of the device in 1e12 operations per second, to have the report predict seconds.
        preload: keep both experts' weights on the host, so that an expert leaves the GPU without being copied back, and
            bring the low-noise one in while high-noise forwards still run. Same video. For ``WanT2V`` and
            ``WanI2V`` where they move their experts (``offload_model=True``, or built with ``init_on_cpu=True``). Both
            experts are resident only if, with the low-noise one, `halfframe.preload.GPU_RESERVE` of GPU memory stays
            free, measured after a high-noise forward as large as any to come; else it comes in at the switch, as
            upstream's. Either way it goes through 256 MiB of page-locked host memory; without that, plainly and at the
            switch, with a warning. Not for experts under FSDP: a warning says so, and the run goes on without. Weights
            must not change during a run.
        preset: ``"faithful"``, ``"balanced"`` or ``"fast"`` in place of a strategy and its options, see
            `halfframe.presets`. ``"fast"`` truncates guidance as well, unless one of the three numbers of guidance is
            other than its default; in a run of 5 steps or fewer that is all guidance.
        plugins: objects with `halfframe.hookimpl` functions, for this block, beside the installed ones.
        **options: the strategy's own options.

    Yields:
        The `EnabledPipe`; its ``report`` is the latest run's.

    Raises:
        UnsupportedPipelineError: `pipe` has no expert switch, or is no known pipeline.
        StrategyError: the strategy is unknown, provided twice, or no strategy at all; or, from within a run, it
            returned something of the wrong shape, dtype or device.
        PluginError: an installed plugin cannot be imported or registered.
        OptionError: an unknown option or an unusable value.
        HalfframeError: the pipeline is enabled already, or, from within a run, is generating already.
    """
    _refuse_enabled(pipe)
    resolved, manager, settings = check_options(
        strategy,
        noise=noise,
        cfg_truncate_steps=cfg_truncate_steps,
        cfg_truncate_high_noise_steps=cfg_truncate_high_noise_steps,
        cfg_mode=cfg_mode,
        cfg_every=cfg_every,
        measure=measure,
        tflops=tflops,
        preload=preload,
        preset=preset,
        plugins=plugins,
        **options,
    )
    host = find_host(pipe, manager)
    if preload:
        _refuse_preload(host, pipe)
    handle = EnabledPipe(pipe, host, resolved, manager, settings)
    handle._attach()
    _logger.debug("enabled %s on %s", handle.strategy.name, type(pipe).__name__)
    try:
        yield handle
    finally:
        handle._detach()
