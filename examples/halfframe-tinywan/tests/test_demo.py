"""`halfframe demo`, from a prompt to a page."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from halfframe.cli import main

pytest.importorskip("diffusers")


def test_from_a_prompt_to_a_page(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["demo", "--sample_steps", "--output", str(tmp_path)]) == 0  # the LoRA alone
    table = capsys.readouterr().out
    assert "| recipe full full full reuse | 4 |" in table
    assert "| fewer steps, 3 | 3 |" in table
    folder = tmp_path / "4-steps-lora"
    assert {".html", ".mp4", ".png", ".json", ".md"} <= {path.suffix for path in folder.rglob("*")}
    facts = json.loads((folder / "comparison.json").read_text())["facts"]
    assert (facts["video"], facts["shift"]) == ("81 frames 96x96", 5.0)


def test_outside_the_vocabulary(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["demo", "--prompt", "a woman walking in a park", "--output", str(tmp_path / "none")]) == 1
    error = capsys.readouterr().err
    assert "is not in TinyWan's language; needed:" in error
    assert error.count("\n") == 1
    assert not (tmp_path / "none").exists()
