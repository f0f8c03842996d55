"""The expert switch without copying back: when the low-noise expert's weights are brought in, and from what memory.

Host copies of both experts stay. The expert that leaves is pointed back at its own, which copies nothing; the low-noise
expert streams in while high-noise passes still run, if there is room for both, else at the switch. Either way it goes
through a few page-locked buffers, see `halfframe.offload.staging`.
"""

from __future__ import annotations

from collections.abc import Mapping

from torch.nn import Module

from halfframe.offload.accelerator import Accelerator
from halfframe.offload.residency import Residency
from halfframe.sampling.host import PrefetchOutcome
from halfframe.sampling.strategy import Expert, Step

__all__ = ["GPU_RESERVE", "Prefetch"]

GPU_RESERVE = 2 << 30
"""Bytes of device memory that stay free when both experts are resident."""


class Prefetch:
    """Both experts' weights, for as long as the pipeline is enabled.

    The rule for overlapping: the low-noise expert is staged after a high-noise pass, if no later high-noise step
    computes more frames than those so far (so the memory that they take is known) and `Accelerator.room` is at least
    its bytes and `GPU_RESERVE`. Otherwise, and if staging fails, it comes in at the switch, where the high-noise expert
    has left: device memory is then never above the host's own.

    Weights must not be changed while a run goes on: what is changed on the device is lost.
    """

    def __init__(self, experts: Mapping[Expert, Module], accelerator: Accelerator) -> None:
        self.accelerator = accelerator
        self._residencies = {expert: Residency(module, accelerator) for expert, module in experts.items()}
        self._seen: set[Expert] = set()
        self._why = ""
        self._outcome: PrefetchOutcome | None = None

    def serves(self, experts: Mapping[Expert, Module]) -> bool:
        """Whether these are the modules that this was made for."""
        return all(self._residencies[expert].module is module for expert, module in experts.items())

    def begin(self) -> None:
        """A run begins."""
        self._seen.clear()
        self._why = "no forward pass of the high-noise expert ended in time"
        self._outcome = None
        for residency in self._residencies.values():
            residency.trouble = ""

    def enter(self, expert: Expert) -> bool:
        """Bring `expert` to the device; False if that is left to its own `to`."""
        residency = self._residencies[expert]
        if not residency.enter():
            return False
        if expert == "low" and "high" in self._seen and self._outcome is None:
            trouble = residency.trouble
            at_the_switch = PrefetchOutcome(f"at the switch: {trouble or self._why}", warn=bool(trouble))
            self._outcome = PrefetchOutcome("overlapped") if residency.aside else at_the_switch
        return True

    def leave(self, expert: Expert) -> bool:
        """Take `expert` from the device; False if that is left to its own `to`."""
        # The other expert may be resident already, or this one's memory may be of a kind that only staging takes: then
        # it goes back at once, or the cache would keep an expert's worth that upstream would have used again.
        give_back = any(residency.staged or residency.aside for residency in self._residencies.values())
        if not self._residencies[expert].leave():
            return False
        if give_back:
            self.accelerator.give_back()
        return True

    def after_forward(self, step: Step, at_its_largest: bool) -> None:
        """A forward pass of `step` was launched; `at_its_largest`: no later step of its expert computes more frames."""
        self._seen.add(step.expert)
        low = self._residencies["low"]
        if step.expert == "low" or step.expert_steps == step.num_steps:
            return
        if not (low.staged or low.trouble) and low.on_host:
            self._why = self._why_not_now(low, at_its_largest)
            if not self._why:
                low.stage()

    def _why_not_now(self, low: Residency, at_its_largest: bool) -> str:
        if not at_its_largest:
            return "a later high-noise step computes more frames than those so far"
        room, needed = self.accelerator.room(), low.nbytes + GPU_RESERVE
        if room < needed:
            return f"{room / 2**30:.1f} GiB of device memory are free, {needed / 2**30:.1f} are needed"
        return ""

    def end(self, *, failed: bool) -> PrefetchOutcome:
        """The run is over; if it `failed`, experts that came from the host are there again.

        Otherwise they are where the pipeline left them.
        """
        for residency in self._residencies.values():
            if failed:
                residency.put_back()
            residency.carry()
        for residency in self._residencies.values():  # once all is in its place: a device that failed may fail again
            residency.drop_staged()
        if failed:
            self.accelerator.give_back()
        if self._outcome is not None:
            return self._outcome
        if len(self._seen) < 2:
            return PrefetchOutcome("off: the run had no expert switch", True)
        return PrefetchOutcome("off: the pipeline did not bring the low-noise expert in from the host", True)

    def close(self) -> None:
        """Keep nothing; the experts stay where they are."""
        for residency in self._residencies.values():
            residency.drop_staged()
            residency.forget()
        self.accelerator.close()
