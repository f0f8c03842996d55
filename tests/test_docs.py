"""Every Python block of the pages that say so runs, and prints what the text block after it says."""

from __future__ import annotations

import contextlib
import io
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch

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
    [DOCS / "strategies.md", DOCS / "hooks.md", DOCS.parent / "examples" / "tinywan" / "README.md"],
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


@pytest.mark.parametrize("name", ["hooks.md", "strategies.md"])
def test_the_examples_are_found(name: str) -> None:
    page = DOCS / name
    blocks = python_blocks(page)
    assert len(blocks) == page.read_text(encoding="utf-8").count("\n```python\n") > 3
    assert sum(bool(block.prints) for block in blocks) == page.read_text(encoding="utf-8").count("\n```text\n")


def test_every_hook_has_its_heading_and_an_example() -> None:
    text = (DOCS / "hooks.md").read_text(encoding="utf-8")
    sections = dict(re.findall(r"^## (\w+)\n(.*?)(?=^## |\Z)", text, re.MULTILINE | re.DOTALL))
    assert set(sections) == {name for name in vars(HookSpecs) if name.startswith("halfframe_")}
    for name, section in sections.items():
        assert f"def {name}(" in section
        assert "```text\n" in section
