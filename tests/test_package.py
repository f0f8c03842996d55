"""`import halfframe` is light, and its names are the same however they are reached."""

from __future__ import annotations

import ast
import inspect
import subprocess
import sys
from pathlib import Path

import pytest

import halfframe


def python(code: str) -> str:
    finished = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False, timeout=120)
    assert finished.returncode == 0, finished.stderr
    return finished.stdout


def test_every_name_is_there_and_nothing_else() -> None:
    for name in halfframe.__all__:
        assert name in dir(halfframe)
        assert not inspect.ismodule(getattr(halfframe, name))
    with pytest.raises(AttributeError, match="module 'halfframe' has no attribute 'enabeld'"):
        halfframe.enabeld  # type: ignore[attr-defined]  # noqa: B018
    with pytest.raises(ImportError, match="cannot import name 'enabeld'"):
        exec("from halfframe import enabeld")


def test_type_checkers_see_what_is_imported() -> None:
    tree = ast.parse(Path(halfframe.__file__).read_text())
    [block] = [node for node in tree.body if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING"]
    seen = {a.name: node.module for node in block.body if isinstance(node, ast.ImportFrom) for a in node.names}
    assert seen == halfframe._HOMES
    assert {*seen, "__version__"} == set(halfframe.__all__)


def test_import_halfframe_imports_no_torch() -> None:
    python("import halfframe, halfframe.errors, sys; assert 'torch' not in sys.modules")


ORDERS = (
    "from halfframe import {name}",
    "import halfframe.{name}; from halfframe import {name}",
    "import halfframe.{name} as {name}",
    "import halfframe; halfframe.{name}; import halfframe.{name}; {name} = halfframe.{name}",
    "from halfframe.{name} import __name__ as _; import halfframe; {name} = halfframe.{name}",
    "import importlib; importlib.import_module('halfframe.{name}'); from halfframe import *",
)


def test_a_module_never_hides_the_function_of_its_name() -> None:
    forget = "for key in [key for key in sys.modules if key.split('.')[0] == 'halfframe']: del sys.modules[key]"
    lines = ["import sys, types"]
    for name in ("enabled", "plan", "strategies"):
        for order in ORDERS:
            line = order.format(name=name)
            lines += [forget, line, f"assert isinstance({name}, types.FunctionType), {line!r}"]
    python("\n".join(lines))


def test_help_begins_with_what_it_does_for_the_user() -> None:
    doc = inspect.getdoc(halfframe.enabled)
    assert doc is not None
    assert doc.startswith("Make `pipe` faster")
