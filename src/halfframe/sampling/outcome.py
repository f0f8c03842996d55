"""What is said of a run that is over: one line logged, the report for hooks, warnings. The video is made by then, and
nothing that goes wrong here may cost it.
"""

from __future__ import annotations

import logging
import math
from dataclasses import dataclass

import pluggy
from torch import Tensor

from halfframe.errors import HalfframeWarning, warn
from halfframe.report.report import Report
from halfframe.sampling import frames
from halfframe.sampling.frame_map import FrameMap
from halfframe.sampling.host import HostFacts
from halfframe.sampling.schedule import Schedule
from halfframe.sampling.scheduler import Scheduler

__all__ = ["Wishes", "announce", "warn_of_shared_noise", "why_nothing_saved"]

_logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Wishes:
    """What was to happen: fewer frames or steps computed, guidance without some of its passes."""

    skips: bool
    guidance: bool


def announce(report: Report, hooks: pluggy.HookRelay, wishes: Wishes) -> None:
    """Log one line, hand `report` to the hooks, and warn if something that was asked for did not happen."""
    _logger.info(report.summary())
    try:
        hooks.halfframe_report(report=report)
    except (Exception, SystemExit) as error:
        _logger.exception("a halfframe_report hook failed")
        names = " or ".join(sorted(hook.plugin_name for hook in hooks.halfframe_report.get_hookimpls()))
        _warn(
            f"a halfframe_report hook failed: {type(error).__name__}: {error}, in {names}; the video and the report "
            "are whole"
        )
    if wishes.guidance and not report.guidance_truncated:
        _warn(f"no unconditional pass was skipped: {_why_not_truncated(report)}")
    if wishes.skips and not report.saved:
        _warn(f"nothing was skipped: {report.note}")


def _warn(message: str) -> None:
    """Warn; where warnings are turned into errors, log it as one."""
    try:
        warn(message)
    except HalfframeWarning as warning:
        _logger.error("%s", warning)


def _why_not_truncated(report: Report) -> str:
    if report.high.passes + report.low.passes > report.steps:
        return "the first step of each expert computes it, and no expert had a step without"
    return "there was none to skip"


def why_nothing_saved(schedule: Schedule | None, scheduler: Scheduler | None, facts: HostFacts, named: str) -> str:
    """Why a run computed every frame; `named` is the strategy, empty where none was asked for."""
    if schedule is None and scheduler is not None and scheduler.timesteps.numel() == 0:
        return "the schedule has no steps; ask for 1 or more"
    if schedule is None:
        return "no expert call passed through halfframe, so this is a plain run's video; the host's loop is unknown"
    if schedule.steps[0].num_frames == 1:
        return "the clip has 1 latent frame, which cannot be skipped; ask for 5 video frames or more"
    if not any(step.expert == "high" for step in schedule.steps):
        return facts.never_high or (
            f"no timestep of the schedule reaches the boundary {facts.boundary:g}, so the high-noise expert never ran; "
            "use a larger shift"
        )
    return f"{named} skipped no frame" if named else "no strategy was asked for"


def warn_of_shared_noise(schedule: Schedule | None, latents: Tensor, named: str) -> None:
    """Warn if means of frames are to be computed and the latents to start from have not a noise for each frame.

    A mean is scaled as one of independent noise; of shared noise, it would come out too strong.
    """
    if schedule is None or not schedule.steps or schedule.steps[0].sigma < 0.9:
        return  # what the frames show is alike, and may be
    if not any(isinstance(move, FrameMap) and not move.kept for move in schedule.moves):
        return
    share = frames.neighbours_share(latents)
    values = max(1, latents.numel() - latents[..., :1, :, :].numel())
    if share > max(0.25, 6 / math.sqrt(values)):  # what chance gives is about one over the root of their number
        warn(
            f"{named} computes means of frames, but neighbouring frames of the latents to start from share their noise "
            f"(correlation {share:.2f}), so the expert is given more noise than it is told; draw noise for each frame, "
            "or use 'interleave'."
        )
