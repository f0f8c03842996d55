"""halfframe: faster Wan2.2 on an unmodified install; the high-noise expert computes only part of the latent frames.

with halfframe.enabled(pipe) as run:
    video = pipe.generate(prompt, frame_num=81)
print(run.report)
"""

from importlib.metadata import PackageNotFoundError
from importlib.metadata import version as _version

from halfframe.enabled import EnabledPipe, disable, enable, enabled
from halfframe.errors import (
    HalfframeError,
    HalfframeWarning,
    OptionError,
    PluginError,
    StrategyError,
    UnsupportedPipelineError,
)
from halfframe.hosts.doctor import Diagnosis, doctor
from halfframe.plan import Plan, plan
from halfframe.plugins.spec import hookimpl, hookspec
from halfframe.plugins.strategies import DEFAULT_STRATEGY, StrategyInfo, strategies
from halfframe.report.report import PhaseReport, Report
from halfframe.sampling.events import Boundary, ExpertCall
from halfframe.sampling.frame_map import FrameMap
from halfframe.sampling.guidance import Guidance
from halfframe.sampling.strategy import Allocation, Reuse, Step, Strategy
from halfframe.strategies import (
    Expansion,
    Interleave,
    Interpolate,
    Merge,
    OwnNoise,
    PreviousOdd,
    Recipe,
    SelfDuplicate,
)

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
    "FrameMap",
    "Guidance",
    "HalfframeError",
    "HalfframeWarning",
    "Interleave",
    "Interpolate",
    "Merge",
    "OptionError",
    "OwnNoise",
    "PhaseReport",
    "Plan",
    "PluginError",
    "PreviousOdd",
    "Recipe",
    "Report",
    "Reuse",
    "SelfDuplicate",
    "Step",
    "Strategy",
    "StrategyError",
    "StrategyInfo",
    "UnsupportedPipelineError",
    "__version__",
    "disable",
    "doctor",
    "enable",
    "enabled",
    "hookimpl",
    "hookspec",
    "plan",
    "strategies",
]
