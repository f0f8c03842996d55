"""Reading a host's source without importing it: to be imported, hosts need GPUs, codecs and much besides."""

from __future__ import annotations

import importlib.util
from importlib import metadata
from pathlib import Path
from types import CodeType

__all__ = ["class_methods", "package_version"]


def package_version(package: str) -> tuple[str, str | None]:
    """``(distribution, version)`` that brings the importable `package`; version None if it is not there.

    A package that is found but was not pip-installed (a checkout on the path) has the version ``"unknown"``.
    """
    if importlib.util.find_spec(package) is None:
        return package, None
    # An editable install is often known by the distribution's name alone.
    name = metadata.packages_distributions().get(package, [package])[0]
    try:
        return name, metadata.version(name)
    except metadata.PackageNotFoundError:
        return package, "unknown"


def class_methods(package: str, module: str, cls: str) -> dict[str, CodeType]:
    """The compiled methods of ``package.module.cls`` by name; empty where there is no such class."""
    spec = importlib.util.find_spec(package)
    for folder in (spec.submodule_search_locations or ()) if spec else ():
        path = Path(folder, *module.split(".")).with_suffix(".py")
        if path.is_file():
            body = _code(compile(path.read_bytes(), str(path), "exec"), cls)
            return {code.co_name: code for code in _codes(body)} if body else {}
    return {}


def _code(code: CodeType, name: str) -> CodeType | None:
    return next((inner for inner in _codes(code) if inner.co_name == name), None)


def _codes(code: CodeType) -> list[CodeType]:
    return [constant for constant in code.co_consts if isinstance(constant, CodeType)]
