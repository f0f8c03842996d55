"""Every Python block of the pages that say so runs, and prints what the text block after it says."""

from __future__ import annotations

import ast
import contextlib
import io
import re
import runpy
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch

import halfframe
from halfframe.plugins.spec import HookSpecs

DOCS = Path(__file__).parents[1] / "docs"
FENCE = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)


@dataclass(frozen=True)
class Block:
    """A Python block of a page: its first line's number, its text, and what the page says it prints."""

    line: int
    source: str
    prints: str


def python_blocks(page: Path) -> list[Block]:
    text = page.read_text(encoding="utf-8")
    fences = list(FENCE.finditer(text))
    blocks = []
    for fence, after in zip(fences, [*fences[1:], None], strict=True):
        if fence[1] != "python":
            continue
        # Its output is the next block, if that is a text block and nothing but space lies between.
        answered = after is not None and after[1] == "text" and not text[fence.end() : after.start()].strip()
        prints = after[2] if after is not None and answered else ""
        blocks.append(Block(text.count("\n", 0, fence.start()) + 2, fence[2], prints))
    return blocks


@pytest.fixture
def one_thread() -> Iterator[None]:
    """Models this small spend their time waiting for a second thread, above all where another process has its core."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.mark.usefixtures("one_thread")
@pytest.mark.parametrize(
    "page",
    [
        DOCS / "strategies.md",
        DOCS / "hooks.md",
        DOCS / "serving.md",
        DOCS.parent / "examples" / "halfframe-tinywan" / "README.md",
    ],
    ids=lambda page: page.name,
)
def test_the_pages_examples_run_and_print_what_it_says(page: Path) -> None:
    namespace: dict[str, Any] = {"__name__": "docs"}  # shared by a page's blocks, which build on each other
    for block in python_blocks(page):
        printed = io.StringIO()
        padded = "\n" * (block.line - 1) + block.source  # so that a traceback shows the page's own line
        with contextlib.redirect_stdout(printed):
            exec(compile(padded, str(page), "exec"), namespace)
        assert printed.getvalue() == block.prints, f"{page.name}, the block at line {block.line}"


@pytest.mark.parametrize("name", ["hooks.md", "strategies.md", "serving.md"])
def test_the_examples_are_found(name: str) -> None:
    page = DOCS / name
    blocks = python_blocks(page)
    assert len(blocks) == page.read_text(encoding="utf-8").count("\n```python\n") >= 3
    assert sum(bool(block.prints) for block in blocks) == page.read_text(encoding="utf-8").count("\n```text\n")


def test_every_hook_has_its_heading_and_an_example() -> None:
    text = (DOCS / "hooks.md").read_text(encoding="utf-8")
    sections = dict(re.findall(r"^## (\w+)\n(.*?)(?=^## |\Z)", text, re.MULTILINE | re.DOTALL))
    assert set(sections) == {name for name in vars(HookSpecs) if name.startswith("halfframe_")}
    for name, section in sections.items():
        assert f"def {name}(" in section
        assert "```text\n" in section


def draw() -> dict[str, Any]:
    return runpy.run_path(str(DOCS / "figures" / "draw.py"))


def test_the_figures_are_what_their_script_draws() -> None:
    drawn = draw()["figures"]()
    assert {path.name for path in (DOCS / "figures").glob("*.svg")} == set(drawn)
    for name, text in drawn.items():
        assert (DOCS / "figures" / name).read_text(encoding="utf-8") == text, f"run docs/figures/draw.py: {name}"


def imported(path: Path) -> set[str]:
    """The parts of halfframe that a module imports when it runs, whether at its top or within a function."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    for_types = {
        id(inner)
        for node in ast.walk(tree)
        if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING"
        for inner in ast.walk(node)
    }
    names: set[str] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and node.module and id(node) not in for_types:
            names |= {f"{node.module}.{alias.name}" for alias in node.names}
        elif isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
    return {name.split(".")[1] for name in names if name.startswith("halfframe.")}


def test_modules_import_only_from_their_own_layer_and_those_below() -> None:
    package = Path(halfframe.__file__).parent
    depth = {name: -index for index, (_, names, _) in enumerate(draw()["LAYERS"]) for name in names}
    seen = set()
    for path in package.rglob("*.py"):
        part = path.relative_to(package).parts[0].removesuffix(".py")
        if part in ("__init__", "tinywan"):  # the package itself imports nothing before a name is asked for
            continue
        seen.add(part)
        for other in imported(path) & set(depth):
            assert depth[other] <= depth[part], f"{path.name} of {part} imports {other}"
    assert seen == set(depth)


def test_the_predicted_speeds_are_what_plan_says() -> None:
    page = (DOCS / "what-to-use-when.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| `(\S+)`(, guidance \(5, 3\))? \|((?: (?:[\d.]+x|-) \|){5})$", page, re.MULTILINE)
    i2v: dict[str, Any] = {"sampling_steps": 40, "shift": 5.0, "boundary": 0.9}
    lora: dict[str, Any] = {"sampling_steps": 4, "shift": 5.0, "guided": False}
    columns: list[dict[str, Any]] = [*({"sampling_steps": steps} for steps in (40, 20, 8)), lora, i2v]
    assert len(rows) == 7
    for strategy, truncated, cells in rows:
        guidance = halfframe.Guidance(skip_last=5, skip_last_high=3) if truncated else None
        for column, cell in zip(columns, cells.replace(" ", "").split("|"), strict=False):
            if cell != "-":
                plan = halfframe.plan(strategy=None if strategy == "none" else strategy, guidance=guidance, **column)
                assert f"{plan.predicted_speedup:.2f}x" == cell, (strategy, column)
