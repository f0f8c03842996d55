"""`halfframe demo`, on both hosts."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from halfframe.cli import main


@pytest.mark.parametrize("host", ["diffusers", "wan"])
def test_from_a_prompt_to_videos(host: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    prompt = "a small blue square moves up slowly over sand"
    arguments = ["demo", "--prompt", prompt, "--sample_steps", "3", "--host", host, "--output", str(tmp_path)]
    assert main([*arguments, "--strategy", "interleave:stride=3"]) == 0
    table = capsys.readouterr().out
    assert "| interleave:stride=3 | 3 |" in table
    assert "| fewer steps" in table
    assert "- weights: TinyWan's" in table
    names = {path.suffix for path in tmp_path.rglob("*") if path.is_file()}
    assert {".mp4", ".png", ".json", ".md"} <= names
    comparison = json.loads((tmp_path / "comparison.json").read_text())
    assert comparison["facts"]["video"] == "81 frames 96x96"


def test_outside_the_vocabulary(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["demo", "--prompt", "a woman walking in a park", "--output", str(tmp_path / "none")]) == 1
    error = capsys.readouterr().err
    assert "is not in TinyWan's language; needed:" in error
    assert error.count("\n") == 1
    assert not (tmp_path / "none").exists()
