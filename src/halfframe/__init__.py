"""halfframe: Wan2.2's high-noise expert on half the latent frames, on an install that stays as it is.

with halfframe.enabled(pipe) as run:
    video = pipe.generate(prompt, frame_num=81)
print(run.report)
"""

from importlib.metadata import PackageNotFoundError
from importlib.metadata import version as _version

from halfframe.context import DEFAULT_STRATEGY, EnabledPipe, enabled
from halfframe.diagnosis import Diagnosis, doctor
from halfframe.errors import (
    HalfframeError,
    HalfframeWarning,
    OptionError,
    PluginError,
    StrategyError,
    UnsupportedPipelineError,
)
from halfframe.events import Boundary, ExpertCall
from halfframe.hookspecs import hookimpl, hookspec
from halfframe.planning import Plan, plan
from halfframe.plugins import StrategyInfo, strategies
from halfframe.report import PhaseReport, Report
from halfframe.strategies.base import Allocation, Expansion, Step, Strategy
from halfframe.strategies.mixture import Mixture

try:
    __version__ = _version("halfframe")
except PackageNotFoundError:  # run from a source tree that was never installed
    __version__ = "0+unknown"

__all__ = [
    "DEFAULT_STRATEGY",
    "Allocation",
    "Boundary",
    "Diagnosis",
    "EnabledPipe",
    "Expansion",
    "ExpertCall",
    "HalfframeError",
    "HalfframeWarning",
    "Mixture",
    "OptionError",
    "PhaseReport",
    "Plan",
    "PluginError",
    "Report",
    "Step",
    "Strategy",
    "StrategyError",
    "StrategyInfo",
    "UnsupportedPipelineError",
    "__version__",
    "doctor",
    "enabled",
    "hookimpl",
    "hookspec",
    "plan",
    "strategies",
]
