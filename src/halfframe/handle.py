"""A pipeline with halfframe on: it serves one run at a time, and is restored despite interrupts and threads."""

from __future__ import annotations

import logging
import os
import threading
import time
import weakref
from collections.abc import Callable
from types import TracebackType
from typing import TYPE_CHECKING, Any, TypeVar

from halfframe.errors import HalfframeError, warn
from halfframe.hosts import HostAdapter
from halfframe.hosts.patching import Patches
from halfframe.plugins.configuration import Configuration
from halfframe.report.report import Report
from halfframe.sampling.host import HostFacts
from halfframe.sampling.run import SamplingRun

__all__ = ["EnabledPipe", "handle_of", "refuse_enabled"]

_logger = logging.getLogger(__name__)
_T = TypeVar("_T")
_registry: dict[int, EnabledPipe] = {}
"""Enabled pipelines by id; each is claimed with one `setdefault`, which no interrupt can split."""
_KEPT_REPORTS = 100
_TURN = 0.01  # seconds between two looks at whose turn it is


class _Claim:
    """A run's claim to its pipeline."""

    def __init__(self) -> None:
        self.thread = threading.get_ident()
        self.process = os.getpid()
        self.patches = Patches()


class _Leaving:
    """Leaves a block when it is called, or else when it is dropped.

    An interrupt may come before the first line of an ``__exit__``. The interpreter takes this from the handle before
    it enters, and drops it then.
    """

    def __init__(self, handle: EnabledPipe) -> None:
        self._handle = handle
        self._entering = handle._state == "new"

    def __call__(self, *_: object) -> None:
        try:
            self._handle._switch_off()
        finally:
            if self._handle._unfinished:  # an interrupt came in the middle
                self._handle._switch_off()

    def __del__(self) -> None:
        if self._entering and self._handle._unfinished:
            self._handle._switch_off()


class _Exit:
    """The ``__exit__`` of a handle."""

    def __get__(self, handle: EnabledPipe | None, cls: type) -> Callable[..., None]:
        return (lambda self, *given: _Leaving(self)(*given)) if handle is None else _Leaving(handle)


class EnabledPipe:
    """A pipeline with halfframe on, as returned by `halfframe.enabled` and `halfframe.enable`.

    Attributes:
        reports: one report per finished run, oldest first; the last 100 are kept.
    """

    def __init__(self, pipe: Any, host: HostAdapter, configuration: Configuration, wait: bool = False) -> None:
        self.reports: list[Report] = []
        self._pipe: Any = pipe
        self._ref = _reference(pipe)
        self._id = id(pipe)
        self._kind = type(pipe).__name__
        self._host = host
        self._configuration = configuration
        self._patches = Patches()
        self._wait = wait
        self._claims: dict[_Claim, None] = {}  # a queue, whose first is served; changed in single steps only
        self._own = threading.local()
        self._unfinished = False
        self._ending = threading.RLock()
        self._by_with = False
        self._state = "new"

    @property
    def pipe(self) -> Any:
        """The pipeline. Once halfframe is off, only a weak reference is kept, so this may be None."""
        return self._ref() if self._pipe is None else self._pipe

    @property
    def strategy(self) -> Any:
        """The strategy of its runs."""
        return self._configuration.strategy

    @property
    def report(self) -> Report | None:
        """The report of the calling thread's latest run; without one, of any thread's latest; None before the first."""
        latest: Report | None = getattr(self._own, "report", None)
        return latest or (self.reports[-1] if self.reports else None)

    def __reduce_ex__(self, protocol: Any) -> Any:
        raise HalfframeError(
            f"what enabled({self._kind}) gives belongs to this process and its pipeline, so it cannot be copied or "
            "pickled; pass the pipeline, and enable it where it arrives. Reports can be pickled."
        )

    def __str__(self) -> str:
        states = {"new": "not entered yet", "on": "on", "off": "off again"}
        head = f"halfframe is {states[self._state]} for a {self._kind} ({self._host.name}): {self._configuration}"
        done = f"{len(self.reports)} run{'' if len(self.reports) == 1 else 's'} finished"
        return f"{head}\n{done}" + (f", the latest:\n{self.report}" if self.report else "")

    def __enter__(self) -> EnabledPipe:
        self._switch_on()
        self._by_with = True
        return self

    if TYPE_CHECKING:

        def __exit__(
            self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
        ) -> None: ...
    else:
        __exit__ = _Exit()

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
        refuse_enabled(self._pipe)
        try:
            self._unfinished = True
            if _registry.setdefault(self._id, self) is not self:
                refuse_enabled(self._pipe)
            self._state = "on"
            self._host.attach(self._pipe, self._patches, self._serve)
        except BaseException:
            self._switch_off()
            raise
        _logger.debug("enabled %s on %s", self.strategy.name, self._kind)

    def _switch_off(self) -> None:
        """Undo the patches; where a run is going on, it does so when it ends, because it needs them until then."""
        self._state = "off"
        self._end_the_dead()
        claims = list(self._claims)
        if not claims:
            self._forget()
            return
        self._unfinished = False  # the last run to end forgets
        thread = claims[0].thread
        if thread != threading.get_ident():
            warn(
                f"halfframe was switched off while thread {thread} is calling this {self._kind}; that run ends "
                "as it began, and then the pipeline is as before."
            )

    def _end_the_dead(self) -> None:
        """End runs whose threads are not in this process, which was forked from theirs."""
        for claim in list(self._claims):
            if claim.process != os.getpid():
                self._ending = threading.RLock()
                claim.patches.undo()
                self._claims.pop(claim, None)

    def _forget(self) -> None:
        with self._ending:
            self._patches.undo()
            if _registry.get(self._id) is self:
                del _registry[self._id]
            self._pipe = None
            self._unfinished = False

    def _serve(self, facts: HostFacts, body: Callable[[SamplingRun, Patches], _T]) -> _T:
        """Have `body` run the host's loop; its patches are undone and its report is filed when it ends."""
        claim = _Claim()
        run: SamplingRun | None = None
        try:
            self._queue(claim)
            if self._state != "on":
                raise HalfframeError(
                    f"the block that enabled this {self._kind} was left while another thread was calling it; call it "
                    "again, or wait for the thread before leaving the block."
                )
            chosen = self._configuration
            hooks = chosen.hooks.hook
            run = SamplingRun(facts, chosen.strategy, chosen.guidance, hooks, chosen.measure)
            result = body(run, claim.patches)
            claim.patches.undo()
            report = run.report()
            self.reports.append(report)
            del self.reports[:-_KEPT_REPORTS]
            self._own.report = report
            run.announce(report)
            return result
        finally:
            try:
                self._end(claim, run)
            finally:  # once more, for an interrupt may come in its middle
                self._end(claim, run)

    def _queue(self, claim: _Claim) -> None:
        """Wait for `claim`'s turn, if that was asked for."""
        self._end_the_dead()
        self._claims[claim] = None
        while (holder := next(iter(list(self._claims)))) is not claim:
            nested = [other.thread for other in list(self._claims)].count(claim.thread) > 1
            if nested or not self._wait:
                then = "Call it after the run has ended" if nested else "Wait for it, enable it with wait=True"
                raise HalfframeError(
                    f"this {self._kind} is generating already, in thread {holder.thread}; a pipeline serves one run "
                    f"at a time. {then}, or build a second pipeline."
                )
            time.sleep(_TURN)  # rather than an event, whose lock an interrupt can leave held for ever

    def _end(self, claim: _Claim, run: SamplingRun | None) -> None:
        claim.patches.undo()
        if run is not None:
            run.close()
        self._claims.pop(claim, None)
        if self._state == "off" and not self._claims:
            self._forget()


def handle_of(pipe: object) -> EnabledPipe | None:
    """What `pipe` is enabled by, if it is."""
    return _registry.get(id(pipe))


def refuse_enabled(pipe: object) -> None:
    """Raise `HalfframeError` if `pipe` is enabled, or still generates as it was."""
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


def _reference(pipe: Any) -> Callable[[], Any]:
    try:
        return weakref.ref(pipe)
    except TypeError:  # an object of a plugin's host that takes no weak references
        return lambda: None
