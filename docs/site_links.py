"""Files outside of docs/ that pages link to, published with the site: examples' pages with their pictures, and results.

Pages link to them as GitHub reads it, ``../examples/...``; on the site they lie at ``examples/...``.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from mkdocs.structure.files import File, Files

ROOT = Path(__file__).parents[1]
PUBLISHED = (
    "CONTRIBUTING.md",
    "examples/*.py",
    "examples/*/*.md",
    "examples/*/*.png",
    "examples/halfframe-tinywan/study/*.md",
    "examples/halfframe-tinywan/study/*.png",
    "examples/comfyui-halfframe/example_workflows/*.json",
    "benchmarks/results/*.md",
    "benchmarks/results/*.jsonl",
    "benchmarks/results/*.png",
)


def on_files(files: Files, *, config: Any) -> Files:
    """Add them."""
    for pattern in PUBLISHED:
        for path in sorted(ROOT.glob(pattern)):
            added = File.generated(config, path.relative_to(ROOT).as_posix(), abs_src_path=str(path))
            files.append(added)
    return files


def on_page_markdown(markdown: str, *, page: Any, **_: Any) -> str:
    """Links of a page of docs/ lose their ``../``; links of others into docs/ lose their ``docs/``."""
    if page.file.generated_by is None:
        return re.sub(r"(\]\(|src=\")\.\./(?=\w)", r"\1", markdown)
    return re.sub(r"(\]\((?:\.\./)*)docs/", r"\1", markdown)
