"""Running a script unmodified, with halfframe on every official pipeline that it builds."""

from __future__ import annotations

import functools
import importlib
import os
import runpy
import sys
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any
from unittest import mock

from halfframe.enabled import EnabledPipe, enabled
from halfframe.errors import HalfframeError
from halfframe.hosts.patching import Patches
from halfframe.plugins.configuration import configure
from halfframe.report.report import Report

__all__ = ["require_script", "run_script"]


def require_script(script: Path) -> None:
    """Raise `HalfframeError` unless `script` is a file."""
    if not script.is_file():
        raise HalfframeError(f"{script} is not there; give the path of upstream's generate.py.")


def run_script(script: Path, arguments: Sequence[str], **options: Any) -> tuple[Report, ...]:
    """Run `script` as ``python SCRIPT ARGUMENTS`` would, with ``enabled(pipe, **options)`` on the pipelines it builds.

    The `wan` package that the script would import is imported first, and for the time of the run its pipeline classes
    enable what they construct. Prints the reports on rank 0.

    Returns:
        The reports of all runs.

    Raises:
        HalfframeError: there is no such script or no `wan` package, or the script built or ran no pipeline.
    """
    require_script(script)
    configure(**options)  # now, and not once the weights are loaded
    with _as_main(script, arguments), ExitStack() as stack:
        handles = stack.enter_context(_enabling(stack, options))
        code = _run_to_its_end(script)
        reports = tuple(report for handle in handles for report in handle.reports)
        if code:
            _print(reports)
            raise SystemExit(code)
        if not handles:
            raise HalfframeError(
                f"{script.name} ended without building a pipeline of the `wan` package, so nothing was made faster; "
                "halfframe run is for scripts that build wan.WanT2V or wan.WanI2V."
            )
        if not reports:
            raise HalfframeError(f"{script.name} ended without a call of `generate`, so nothing was made faster.")
    _print(reports)
    return reports


def _run_to_its_end(script: Path) -> Any:
    """Run `script`; returns what it handed to `sys.exit`, None if nothing."""
    try:
        runpy.run_path(str(script), run_name="__main__")
    except SystemExit as stop:
        return stop.code
    return None


def _print(reports: Sequence[Report]) -> None:
    if os.environ.get("RANK", "0") == "0":
        for report in reports:
            print(report)


@contextmanager
def _as_main(script: Path, arguments: Sequence[str]) -> Iterator[None]:
    """``sys.argv`` and ``sys.path`` as the interpreter sets them for a script."""
    path = _path_for(script)
    with mock.patch.object(sys, "argv", [str(script), *arguments]), mock.patch.object(sys, "path", path):
        yield


def _path_for(script: Path) -> list[str]:
    """``sys.path`` of ``python SCRIPT``: the script's folder in place of what the interpreter put first for us.

    That is the working directory under ``python -m halfframe``, the folder of the command under ``halfframe``, and
    nothing under ``python -P`` and ``-I``.
    """
    if getattr(sys.flags, "safe_path", False) or sys.flags.isolated:
        return list(sys.path)
    command = Path(sys.argv[0])
    ours = Path.cwd() if command.name == "__main__.py" else command.resolve().parent
    first = sys.path[0] if sys.path else None
    replaced = first is not None and Path(first or ".").resolve() == ours
    return [str(script.resolve().parent), *sys.path[1 if replaced else 0 :]]


@contextmanager
def _enabling(stack: ExitStack, options: dict[str, Any]) -> Iterator[list[EnabledPipe]]:
    try:
        wan = importlib.import_module("wan")
    except ImportError as error:
        raise HalfframeError(
            f"the package `wan` cannot be imported here: {error}. Run this in the environment and checkout in which "
            "the script runs without halfframe."
        ) from error
    handles: list[EnabledPipe] = []
    classes = [value for value in vars(wan).values() if isinstance(value, type) and hasattr(value, "generate")]
    with Patches() as patches:
        for cls in classes:
            patches.set(cls, "__init__", _enabled_init(cls, handles, stack, options))
        yield handles


def _enabled_init(cls: type, handles: list[EnabledPipe], stack: ExitStack, options: dict[str, Any]) -> Any:
    original: Any = cls.__init__  # type: ignore[misc]

    @functools.wraps(original)
    def init(self: Any, *args: Any, **kwargs: Any) -> None:
        original(self, *args, **kwargs)
        if all(handle.pipe is not self for handle in handles):  # a subclass may have passed here already
            handles.append(stack.enter_context(enabled(self, **options)))

    return init
