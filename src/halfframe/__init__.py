"""halfframe: faster Wan2.2 on an unmodified install; the high-noise expert computes only part of the latent frames.

with halfframe.enabled(pipe) as run:
    video = pipe.generate(prompt, frame_num=81)
print(run.report)
"""

import importlib as _importlib
import sys as _sys
from importlib.metadata import PackageNotFoundError as _PackageNotFoundError
from importlib.metadata import version as _version
from types import ModuleType as _ModuleType
from typing import TYPE_CHECKING

if TYPE_CHECKING:
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
    from halfframe.plugins import DEFAULT_STRATEGY
    from halfframe.plugins.spec import hookimpl, hookspec
    from halfframe.plugins.strategies import StrategyInfo, strategies
    from halfframe.report.report import PhaseReport, Report
    from halfframe.sampling.events import Boundary, ExpertCall
    from halfframe.sampling.frame_map import FrameMap
    from halfframe.sampling.guidance import Guidance
    from halfframe.sampling.strategy import Allocation, Reuse, Step, Strategy
    from halfframe.strategies.expansion import Expansion, PreviousOdd, SelfDuplicate
    from halfframe.strategies.merge import Merge
    from halfframe.strategies.recipe import Recipe
    from halfframe.strategies.selection import Interleave, Interpolate, OwnNoise

try:
    __version__ = _version("halfframe")
except _PackageNotFoundError:  # run from a source tree that was never installed
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

# Imported when first asked for: `halfframe --help` and `import halfframe.errors` need no torch. A test compares this
# table with the imports above, which are for type checkers and editors.
_MODULES = {
    "enabled": ("EnabledPipe", "disable", "enable", "enabled"),
    "errors": (
        "HalfframeError",
        "HalfframeWarning",
        "OptionError",
        "PluginError",
        "StrategyError",
        "UnsupportedPipelineError",
    ),
    "hosts.doctor": ("Diagnosis", "doctor"),
    "plan": ("Plan", "plan"),
    "plugins": ("DEFAULT_STRATEGY",),
    "plugins.spec": ("hookimpl", "hookspec"),
    "plugins.strategies": ("StrategyInfo", "strategies"),
    "report.report": ("PhaseReport", "Report"),
    "sampling.events": ("Boundary", "ExpertCall"),
    "sampling.frame_map": ("FrameMap",),
    "sampling.guidance": ("Guidance",),
    "sampling.strategy": ("Allocation", "Reuse", "Step", "Strategy"),
    "strategies.expansion": ("Expansion", "PreviousOdd", "SelfDuplicate"),
    "strategies.merge": ("Merge",),
    "strategies.recipe": ("Recipe",),
    "strategies.selection": ("Interleave", "Interpolate", "OwnNoise"),
}
_HOMES = {name: f"halfframe.{module}" for module, names in _MODULES.items() for name in names}


class _Package(_ModuleType):
    """The package; the import of a submodule never hides the function of its name (enabled, plan, strategies)."""

    def __setattr__(self, name: str, value: object) -> None:
        if not (name in _HOMES and isinstance(value, _ModuleType)):
            super().__setattr__(name, value)


_sys.modules[__name__].__class__ = _Package


if not TYPE_CHECKING:  # a type checker that sees it would accept any name

    def __getattr__(name: str) -> object:
        if name not in _HOMES:
            raise AttributeError(f"module 'halfframe' has no attribute {name!r}", name=name, obj=_sys.modules[__name__])
        value = getattr(_importlib.import_module(_HOMES[name]), name)
        globals()[name] = value
        return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
