"""``--tinywan`` of ``halfframe compare`` and ``halfframe tune``, with clips of 9 frames."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path

import pytest
from halfframe_tinywan import tinywan_generate
from halfframe_tinywan.demo import PROMPT

import halfframe
from halfframe.cli import main

pytest.importorskip("diffusers")

SHORT = ["--frame_num", "9", "--sample_steps", "2"]


def test_compare(tmp_path: Path) -> None:
    arguments = ["--strategy", "interleave", "--warm_up_steps", "0", "--no-equal-cost", "--output", str(tmp_path)]
    assert main(["compare", "--tinywan", "t2v", *SHORT, *arguments]) == 0
    found = json.loads((tmp_path / "comparison.json").read_text())
    facts = found["facts"]
    assert (facts["weights"], facts["shift"], facts["prompts"]) == ("TinyWan's, a toy", 12.0, [PROMPT])
    assert [row["steps"] for row in found["variants"]] == [2, 2]


@pytest.mark.parametrize("kind", ["lora", "i2v"])
def test_tune(kind: str, tmp_path: Path) -> None:
    search = ["--budget", "0.8", "--move", "reuse", "--schedule", "2", "--runs", "1", "--output", str(tmp_path)]
    assert main(["tune", "--tinywan", kind, *SHORT, *search]) == 0
    (path,) = tmp_path.glob("recipe-*.json")
    assert len(halfframe.Recipe.load(path).moves) == 2
    assert PROMPT in (tmp_path / "tuning.jsonl").read_text()


def test_each_seed_of_image_to_video_has_its_own_image() -> None:
    generate = tinywan_generate("i2v", video_frames=1)
    first, other, again = (generate(PROMPT, seed, 1) for seed in (0, 1, 0))
    assert first.shape == (1, 96, 96, 3)
    assert (first - other).abs().mean() > 0.05
    assert (first == again).all()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--size", "64x64"], "TinyWan makes clips of 96x96 pixels only; leave out --size."),
        (["--frame_num", "6"], "6 video frames is not 4n+1; use 5 or 9."),
        (["--tiny"], "--tiny and --tinywan given; needed: one of"),
    ],
)
def test_what_cannot_work_is_refused(arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["compare", "--tinywan", "t2v", *arguments]) == 1
    assert message in capsys.readouterr().err


def test_where_tinywan_is_not_installed(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    find_spec = importlib.util.find_spec
    monkeypatch.setattr(
        "importlib.util.find_spec", lambda name, *_: None if name == "halfframe_tinywan" else find_spec(name)
    )
    assert main(["tune", "--tinywan", "lora"]) == 1
    assert capsys.readouterr().err.endswith(
        "halfframe tune: error: --tinywan needs halfframe-tinywan, which is not installed; in a checkout of "
        "halfframe: pip install ./examples/halfframe-tinywan\n"
    )
