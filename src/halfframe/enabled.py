"""``with halfframe.enabled(pipe):`` - where host, strategy, hooks and patches are put together and taken apart."""

from __future__ import annotations

import logging
import os
import threading
import weakref
from collections.abc import Callable, Iterable
from types import TracebackType
from typing import Any, TypeVar

from halfframe.errors import HalfframeError, OptionError, warn
from halfframe.hosts import HostAdapter, find_host
from halfframe.hosts.patching import Patches
from halfframe.plugins.configuration import Configuration, configure
from halfframe.plugins.strategies import DEFAULT_STRATEGY, StrategyLike
from halfframe.report.report import Report
from halfframe.sampling.guidance import Guidance
from halfframe.sampling.host import HostFacts
from halfframe.sampling.run import SamplingRun

__all__ = ["EnabledPipe", "disable", "enable", "enabled"]

_logger = logging.getLogger(__name__)
_T = TypeVar("_T")
_registry: dict[int, EnabledPipe] = {}
"""Enabled pipelines by id; each is claimed with one `setdefault`, which no interrupt can split."""


class _Claim:
    """A run's claim to its pipeline."""

    def __init__(self) -> None:
        self.thread = threading.get_ident()
        self.process = os.getpid()
        self.patches = Patches()


class EnabledPipe:
    """A pipeline with halfframe on: what ``with halfframe.enabled(pipe) as run`` and `halfframe.enable` give.

    Attributes:
        reports: one report per finished run, oldest first.
    """

    def __init__(self, pipe: Any, host: HostAdapter, configuration: Configuration) -> None:
        self.reports: list[Report] = []
        self._pipe: Any = pipe
        self._ref = _reference(pipe)
        self._id = id(pipe)
        self._kind = type(pipe).__name__
        self._host = host
        self._configuration = configuration
        self._patches = Patches()
        self._claims: dict[str, _Claim] = {}
        self._by_with = False
        self._state = "new"

    @property
    def pipe(self) -> Any:
        """The pipeline; once halfframe is off it is not kept alive from here, and may be None."""
        return self._ref() if self._pipe is None else self._pipe

    @property
    def strategy(self) -> Any:
        """The strategy that serves its runs."""
        return self._configuration.strategy

    @property
    def report(self) -> Report | None:
        """The report of the latest finished run; None before the first."""
        return self.reports[-1] if self.reports else None

    def __str__(self) -> str:
        states = {"new": "not entered yet", "on": "on", "off": "off again"}
        head = f"halfframe is {states[self._state]} for a {self._kind} ({self._host.name}): {self._configuration}"
        done = f"{len(self.reports)} run{'' if len(self.reports) == 1 else 's'} finished"
        return f"{head}\n{done}" + (f", the latest:\n{self.report}" if self.report else "")

    def __enter__(self) -> EnabledPipe:
        self._switch_on()
        self._by_with = True
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._switch_off()

    def __del__(self) -> None:
        if getattr(self, "_state", "") == "new":
            warn(
                f"enabled({self._kind}) was never entered, so nothing was made faster; write `with "
                "halfframe.enabled(pipe):`, or `halfframe.enable(pipe)` without a block."
            )

    def _switch_on(self) -> None:
        if self._state != "new":
            raise HalfframeError(
                f"this object of enabled({self._kind}) was entered before and serves one block; call "
                "halfframe.enabled(pipe) again."
            )
        _refuse_enabled(self._pipe)
        try:
            if _registry.setdefault(self._id, self) is not self:
                _refuse_enabled(self._pipe)
            self._state = "on"
            self._host.attach(self._pipe, self._patches, self._serve)
        except BaseException:
            self._switch_off()
            raise
        _logger.debug("enabled %s on %s", self.strategy.name, self._kind)

    def _switch_off(self) -> None:
        """Undo the patches; a run that another thread is in the middle of undoes its own part when it ends."""
        self._state = "off"
        self._patches.undo()
        claim = self._claims.get("run")
        if claim is None:
            self._forget()
        elif claim.process != os.getpid():  # the thread that ran it is not in this process
            claim.patches.undo()
            self._forget()
        elif claim.thread != threading.get_ident():
            warn(
                f"halfframe was switched off while thread {claim.thread} is calling this {self._kind}; that run ends "
                "as it began, and then the pipeline is as before."
            )

    def _forget(self) -> None:
        if _registry.get(self._id) is self:
            del _registry[self._id]
        self._pipe = None

    def _serve(self, facts: HostFacts, body: Callable[[SamplingRun, Patches], _T]) -> _T:
        """Have `body` run the host's loop; its patches are undone and its report is filed when it ends."""
        claim = _Claim()
        run: SamplingRun | None = None
        try:
            holder = self._claims.setdefault("run", claim)
            if holder is not claim:
                raise HalfframeError(
                    f"this {self._kind} is generating already, in thread {holder.thread}; a pipeline serves one run "
                    "at a time. Wait for it, or build a second pipeline."
                )
            if not self._patches.active:
                raise HalfframeError(
                    f"the block that enabled this {self._kind} was left while another thread was calling it; call it "
                    "again, or wait for the thread before leaving the block."
                )
            chosen = self._configuration
            hooks = chosen.hooks.hook
            run = SamplingRun(facts, chosen.strategy, chosen.guidance, hooks, chosen.measure, chosen.prefetch)
            result = body(run, claim.patches)
            claim.patches.undo()
            report = run.report()
            self.reports.append(report)
            run.announce(report)
            return result
        finally:
            claim.patches.undo()
            if run is not None:
                run.close()
            if self._claims.get("run") is claim:
                del self._claims["run"]
                if self._state == "off":
                    self._forget()


def enabled(
    pipe: Any,
    strategy: StrategyLike = DEFAULT_STRATEGY,
    *,
    guidance: Guidance | None = None,
    prefetch: bool = False,
    measure: bool = False,
    plugins: Iterable[object] = (),
    **options: Any,
) -> EnabledPipe:
    """Make `pipe` faster within the ``with`` block: its high-noise expert computes only part of the latent frames.

    The pipeline is called as ever, any number of times. Only this instance is changed, and it is exactly as before once
    the block is left, however it is left. Source: half-frame generation for Wan2.2.

    Args:
        pipe: a two-expert pipeline: ``wan.text2video.WanT2V`` or ``wan.image2video.WanI2V``, or diffusers'
            ``WanPipeline`` or ``WanImageToVideoPipeline``.
        strategy: what is computed at each step: the name of an installed strategy (see `halfframe.strategies`), with
            options if wanted (``"interleave:stride=3"``); a strategy object (``halfframe.Merge(stride=3, until=1)``);
            a `halfframe.Recipe` or the path of one (``"recipe.json"``); a function ``(latents, num_frames) ->
            latents`` with time at dim -3; or None for all frames, to truncate guidance alone.
        guidance: which steps skip the unconditional forward pass; by default none.
        prefetch: bring the low-noise expert's weights to the GPU while high-noise passes still run, and copy none
            back. Same video. For ``WanT2V`` and ``WanI2V`` where they move their experts (``offload_model=True``, or
            built with ``init_on_cpu=True``). Weights must not change during a run.
        measure: time every forward pass of the experts, synchronising the device; the report then has seconds.
        plugins: objects with `halfframe.hookimpl` functions, for this block, beside the installed ones.
        **options: the strategy's own, where it is given by name, class or function.

    Returns:
        A context manager; within the block, its ``report`` is the latest run's.

    Raises:
        UnsupportedPipelineError: `pipe` has no expert switch, or is no known pipeline.
        StrategyError: the strategy is unknown, provided twice, or no strategy at all; or, from within a run, it
            returned something of the wrong shape, dtype or device.
        PluginError: an installed plugin cannot be imported or registered.
        OptionError: an unknown option or an unusable value.
        HalfframeError: the pipeline is enabled already, or, from within a run, is generating already.
    """
    _refuse_enabled(pipe)
    configuration = configure(
        strategy, guidance=guidance, prefetch=prefetch, measure=measure, plugins=plugins, **options
    )
    host = find_host(pipe, configuration.hooks)
    if prefetch:
        _refuse_prefetch(host, pipe)
    return EnabledPipe(pipe, host, configuration)


def enable(pipe: Any, strategy: StrategyLike = DEFAULT_STRATEGY, **settings: Any) -> EnabledPipe:
    """Switch halfframe on for `pipe` until `disable`, for servers and notebooks; arguments as for `enabled`."""
    handle = enabled(pipe, strategy, **settings)
    handle._switch_on()
    return handle


def disable(pipe: Any) -> None:
    """Switch halfframe off again for a pipeline that `enable` switched it on for.

    Raises:
        HalfframeError: it is not on, or a ``with`` block switches it off.
    """
    handle = _registry.get(id(pipe))
    if handle is None or handle._state != "on":
        raise HalfframeError(f"halfframe is not on for this {type(pipe).__name__}; there is nothing to switch off.")
    if handle._by_with:
        raise HalfframeError(
            f"a `with halfframe.enabled(...)` block holds this {type(pipe).__name__}; leave the block instead."
        )
    handle._switch_off()


def _refuse_enabled(pipe: object) -> None:
    handle = _registry.get(id(pipe))
    if handle is None:
        return
    kind = type(pipe).__name__
    if handle._state == "off":
        raise HalfframeError(f"this {kind} is still generating in another thread, which began when halfframe was on.")
    raise HalfframeError(
        f"this {kind} is enabled already; leave the outer `with halfframe.enabled(...)` block, or call "
        "halfframe.disable(pipe), before you enable it with other options."
    )


def _refuse_prefetch(host: HostAdapter, pipe: Any) -> None:
    known = hasattr(host, "prefetch_refusal")
    reason = host.prefetch_refusal(pipe) if known else f"the adapter {host.name!r} does not know how"
    if reason:
        raise OptionError(f"prefetch=True does not fit a {type(pipe).__name__}: {reason}; leave prefetch out.")


def _reference(pipe: Any) -> Callable[[], Any]:
    try:
        return weakref.ref(pipe)
    except TypeError:  # an object of a plugin's host that takes no weak references
        return lambda: None
