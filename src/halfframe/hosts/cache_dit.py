"""cache-dit on an expert: its buffers are kept to the frames and to the guidance pass that they were made from.

cache-dit counts forward passes and takes every second one for the unconditional pass. It hands blocks what they
computed at an earlier pass, and with a static policy or a threshold of 1 or more it does so without a look at shapes.
Nothing of it is imported here: what it puts on an expert is enough.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from halfframe.hosts.patching import Patches, StandIn

__all__ = ["CacheDit"]


class CacheDit:
    """Tells the caches of one run's experts which passes were left out, and where the frames change.

    Args:
        patches: of the run.
    """

    def __init__(self, patches: Patches) -> None:
        self._patches = patches
        self._managers: list[Any] = []  # that ask here before they reuse anything
        self._computed: set[tuple[Any, ...]] = set()  # what was computed for the present frames
        patches.callback(self._managers.clear)

    def left_out(self, expert: Any) -> None:
        """A forward pass of `expert` was left out: it is counted, so that the next one is taken for what it is."""
        manager = _manager_of(expert)
        for context in _contexts(expert):
            manager.set_context(context.name)  # which may begin a new request
            manager.mark_step_begin()

    def forget(self, expert: Any) -> None:
        """The frames that `expert` computes change: have the next pass of each kind computed."""
        manager = _manager_of(expert)
        if manager is None:
            return
        self._ask_before_reuse(manager)
        self._computed.clear()
        for context in _contexts(expert):
            context.clear_buffers()
            for calibrator in (*context.get_calibrators(), *context.get_cfg_calibrators()):
                if calibrator is not None:
                    calibrator.reset_cache()

    def _ask_before_reuse(self, manager: Any) -> None:
        if any(manager is known for known in self._managers):
            return
        self._managers.append(manager)
        original = manager.can_cache

        def can_cache(states: Any, parallelized: bool = False, threshold: Any = None, prefix: str = "Fn") -> Any:
            context = manager.get_context()
            made = (context.name, context.is_separate_cfg_step(), prefix)
            if self._patches.active and made not in self._computed:
                self._computed.add(made)
                return False
            return original(states, parallelized, threshold, prefix)

        self._patches.set(manager, "can_cache", StandIn(original, can_cache))


def _manager_of(expert: Any) -> Any:
    """cache-dit's manager of the caches of `expert`; None if it has none."""
    manager = vars(expert).get("_context_manager")
    return manager if type(manager).__module__.partition(".")[0] == "cache_dit" else None


def _contexts(expert: Any) -> Iterator[Any]:
    """What is remembered of each list of blocks; nothing where caching was turned on and no request has begun yet."""
    known = getattr(_manager_of(expert), "_cached_context_manager", {})
    return (known[name] for name in list(vars(expert).get("_context_names", ())) if name in known)
