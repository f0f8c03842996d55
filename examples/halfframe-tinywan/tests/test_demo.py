"""``halfframe demo`` on both hosts, with clips of 9 frames."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path
from typing import Any

import pytest
from halfframe_tinywan import demo

import halfframe
from halfframe.cli import main
from halfframe.compare import Comparison

SHORT = ["demo", "--frame_num", "9"]


def needs(*names: str) -> None:
    for name in names:  # importing wan itself would import its speech models
        if importlib.util.find_spec(name) is None:
            pytest.skip(f"needs {name}")


def rows(folder: Path) -> dict[str, dict[str, Any]]:
    return {row["name"]: row for row in json.loads((folder / "comparison.json").read_text())["variants"]}


@pytest.mark.parametrize("host", ["diffusers", "wan"])
def test_a_run_on_a_host(host: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    needs("diffusers", host)
    arguments = ["--host", host, "--sample_steps", "3", "--strategy", "interleave", "--no-lora"]
    assert main([*SHORT, *arguments, "--output", str(tmp_path)]) == 0
    printed = capsys.readouterr()
    assert "| interleave | 3 |" in printed.out
    assert f"pipeline: {host} " in printed.out
    (folder,) = tmp_path.iterdir()
    assert folder.name == "3-steps"
    assert f"  {folder / 'report.html'}: baseline; interleave; fewer steps, 2" in printed.err
    assert len(list(folder.glob("case-*/*.mp4"))) == 3
    found = rows(folder)
    assert found["interleave"]["psnr_db"] is not None
    assert found["interleave"]["predicted_speedup"] > 1


def test_what_is_shown_by_default(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    needs("diffusers")
    assert main([*SHORT, "--sample_steps", "4", "--repeat", "2", "--output", str(tmp_path)]) == 0
    guided, lora = rows(tmp_path / "4-steps"), rows(tmp_path / "4-steps-lora")
    assert list(guided)[:3] == ["baseline", halfframe.DEFAULT_STRATEGY, "self-duplicate"]
    assert all(row["steps"] < 4 for name, row in guided.items() if name.startswith("fewer"))
    assert list(lora) == ["baseline", "recipe full full full reuse", "fewer steps, 3"]
    assert {len(trial["seconds"]) for row in lora.values() for trial in row["trials"]} == {2}
    printed = capsys.readouterr()
    assert "weights: TinyWan's, a toy, with its LoRA pair" in printed.out
    assert str(tmp_path / "4-steps-lora" / "report.html") in printed.err


def test_a_prompt_outside_the_vocabulary_writes_nothing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["demo", "--prompt", "a woman walking in a park", "--output", str(tmp_path / "new")]) == 1
    error = capsys.readouterr().err
    assert error.startswith("halfframe demo: error: the prompt 'a woman walking in a park' is not in TinyWan's lang")
    assert error.count("\n") == 1
    assert not list(tmp_path.iterdir())


def test_a_variant_that_fails_shows_in_the_exit_status(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    needs("diffusers")
    recipe = tmp_path / "recipe.json"
    halfframe.Recipe(("full", "reuse", "full")).save(recipe)
    arguments = ["--sample_steps", "2", "--no-lora", "--strategy", str(recipe), "--output", str(tmp_path / "new")]
    assert main([*SHORT, *arguments]) == 1
    error = capsys.readouterr().err
    assert f"halfframe demo: error: variant '{recipe}' failed: StrategyError: " in error
    assert "the recipe is for 3 steps, but the schedule has 2" in error
    assert str(tmp_path / "new" / "2-steps" / "report.html") in error


def test_a_file_that_was_not_written_shows_in_the_exit_status(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    needs("diffusers")
    compared = demo._compared

    def full_disk(*arguments: Any) -> Comparison:
        comparison = compared(*arguments)
        comparison.lost.append("report.html was not written: OSError: No space left on device")
        return comparison

    monkeypatch.setattr(demo, "_compared", full_disk)
    arguments = ["--sample_steps", "2", "--no-lora", "--strategy", "interleave", "--output", str(tmp_path)]
    assert main([*SHORT, *arguments]) == 1
    error = capsys.readouterr().err
    assert "halfframe demo: error: report.html was not written: OSError: No space left on device\n" in error
    assert f"  {tmp_path}" not in error
