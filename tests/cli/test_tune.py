"""``halfframe tune`` on a tiny pipeline of random weights."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

import halfframe
from halfframe.cli import main
from halfframe.cli.main import command_parser
from halfframe.tuning import BUDGETS, MOVES

SMALL = ["--tiny", "--frame_num", "9", "--size", "32x32", "--sample_steps", "3"]


def test_recipes_are_written_and_work(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["tune", *SMALL, "--budget", "0.7", "--move", "reuse", "--schedule", "3", "--runs", "2"]
    assert main([*arguments, "--check_prompt", "a dog", "--output", str(tmp_path)]) == 0
    printed = capsys.readouterr()
    assert "| cost | measured | expected | fewer steps |" in printed.out
    assert f"| {halfframe.DEFAULT_STRATEGY} |" in printed.out
    assert "forward passes if nothing is known yet" in printed.err
    (path,) = tmp_path.glob("recipe-*.json")
    assert len(halfframe.Recipe.load(path).moves) == 3
    assert json.loads((tmp_path / "tuning.json").read_text())["steps"] == 3
    assert main(["plan", "--sample_steps", "3", "--strategy", str(path), "--json"]) == 0


def test_strategies_are_named_as_elsewhere(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    halfframe.Recipe(("full", "reuse", "full")).save(tmp_path / "mine.json")
    arguments = ["tune", *SMALL, "--budget", "0.7", "--move", "reuse", "--schedule", "3", "--runs", "1"]
    arguments += ["--output", str(tmp_path / "tuned"), "--strategy"]
    assert main([*arguments, "merge:stride=3", "--strategy", str(tmp_path / "mine.json"), "--strategy", "none"]) == 0
    rows = [line for line in capsys.readouterr().out.splitlines() if line.startswith("| ")]
    assert [row.split(" | ")[-1] for row in rows[3:]] == ["merge:stride=3 |", f"{tmp_path / 'mine.json'} |"]
    assert main([*arguments, "none"]) == 0
    assert halfframe.DEFAULT_STRATEGY not in capsys.readouterr().out
    assert main([*arguments, "interleav"]) == 1
    assert capsys.readouterr().err.endswith("Did you mean 'interleave'?\n")


def test_other_check_prompts_need_another_folder(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["tune", *SMALL, "--budget", "0.7", "--move", "reuse", "--runs", "1", "--output", str(tmp_path)]
    assert main([*arguments, "--check_prompt", "a dog"]) == 0
    assert json.loads((tmp_path / "tuning.jsonl").read_text().splitlines()[0])["weights"] == ""  # random ones
    capsys.readouterr()
    assert main([*arguments, "--check_prompt", "a cat"]) == 1
    assert "check.jsonl was begun with other settings (check_prompts differ)" in capsys.readouterr().err


def test_mistakes_are_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["tune", "--budget", "0.5"]) == 1
    assert capsys.readouterr().err == (
        "halfframe tune: error: nothing given; needed: one of --tiny, --tinywan, --diffusers, --ckpt_dir. See --help.\n"
    )
    assert main(["tune", *SMALL, "--move", "megre:2", "--output", str(tmp_path)]) == 1
    assert "halfframe tune: error: move" in capsys.readouterr().err


def test_help_names_the_defaults() -> None:  # they stand there as text, because --help imports no torch
    helps = {action.dest: str(action.help) for action in command_parser("tune")._actions}
    assert f"(default: {' '.join(map(str, BUDGETS))})" in helps["budget"]
    assert f"(default: {' '.join(MOVES)})" in helps["move"]
