"""``halfframe compare`` from its arguments to its exit code."""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import pytest

from halfframe.cli.compare import add_arguments, main
from halfframe.compare import write_video
from halfframe.testing import tiny_diffusers_i2v, tiny_diffusers_t2v

SMALL = ["--size", "32x32", "--frame_num", "9", "--sample_steps", "4"]


def run(*arguments: str) -> int:
    parser = argparse.ArgumentParser(prog="halfframe compare")
    add_arguments(parser)
    return main(parser.parse_args(list(arguments)))


def videos(folder: Path) -> list[str]:
    """A baseline and two variants, one of them shorter."""
    base = np.random.default_rng(0).random((9, 32, 32, 3)).astype(np.float32) * 0.8
    names = {"baseline.mp4": base, "variant.mp4": base + 0.1, "short.mp4": base[:5]}
    return [str(write_video(folder / name, video)) for name, video in names.items()]


def test_help_reads_well(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        run("--help")
    assert caught.value.code == 0
    text = capsys.readouterr().out
    for words in ("Compare videos made with and without halfframe", "finished clips, the baseline first", "--tiny"):
        assert words in text
    assert max(map(len, text.splitlines())) <= 120


def test_finished_files(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    baseline, variant, _ = videos(tmp_path)
    assert run(baseline, variant, "--output", str(tmp_path / "out")) == 0
    captured = capsys.readouterr()
    assert "| variant |" in captured.out
    assert "the figures include what the video codec lost" in captured.out
    assert f"written to {tmp_path / 'out'}" in captured.err
    assert (tmp_path / "out" / "comparison.md").read_text() == captured.out


def test_a_failed_variant_is_an_exit_code_and_a_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    baseline, variant, short = videos(tmp_path)
    assert run(baseline, short, variant) == 1
    captured = capsys.readouterr()
    assert "halfframe compare: error: variant 'short' failed: HalfframeError: the video has shape" in captured.err
    assert "| variant | " in captured.out


def test_tiny_compares_strategies_truncation_and_fewer_steps(tmp_path: Path) -> None:
    code = run(
        "--tiny",
        *SMALL,
        "--strategy=self-duplicate",
        "--strategy=none",
        "--cfg_truncate_steps=1",
        "--cfg_truncate_high_noise_steps=1",
        "--fewer_steps=2",
        "--seed=5",
        f"--output={tmp_path}",
    )
    assert code == 0
    data = json.loads((tmp_path / "comparison.json").read_text())
    rows = {row["name"]: row for row in data["variants"]}
    expected = [
        "baseline",
        "self-duplicate",
        "self-duplicate, CFG truncated 1/1",
        "CFG truncated 1/1",
        "fewer steps, 2",
        "fewer steps, 3",
    ]
    assert list(rows) == expected
    assert rows["self-duplicate"]["trials"][0]["report"]["saved"]
    both = rows["self-duplicate, CFG truncated 1/1"]["trials"][0]["report"]
    assert both["saved"]
    assert both["guidance_truncated"]
    assert not rows["CFG truncated 1/1"]["trials"][0]["report"]["saved"]
    assert "of self-duplicate, CFG truncated 1/1" in rows["fewer steps, 2"]["notes"][0]
    assert data["facts"]["weights"].startswith("random")
    assert data["facts"]["video"] == "9 frames 32x32"
    assert data["facts"]["seeds"] == [5]


def test_tiny_compares_guidance_at_every_second_step(tmp_path: Path) -> None:
    arguments = ["--strategy=self-duplicate", "--cfg_every=2", "--no-equal-cost", "--warm_up_steps=0"]
    assert run("--tiny", *SMALL, *arguments, f"--output={tmp_path}") == 0
    rows = {row["name"]: row for row in json.loads((tmp_path / "comparison.json").read_text())["variants"]}
    assert list(rows) == ["baseline", "self-duplicate", "self-duplicate, CFG every 2"]
    plain, every = (rows[name]["trials"][0]["report"] for name in list(rows)[1:])
    assert plain["high"]["passes"] + plain["low"]["passes"] == 8
    # 4 steps at shift 12 are 3 + 1, of which the first and the third, and the first, have both forwards
    assert (every["high"]["passes"], every["low"]["passes"]) == (5, 2)


def test_equal_cost_can_be_switched_off(capsys: pytest.CaptureFixture[str]) -> None:
    assert run("--tiny", *SMALL, "--no-equal-cost", "--warm_up_steps", "0") == 0
    text = capsys.readouterr().out
    assert "| interleave:until=0.99 | 4 |" in text
    assert "fewer steps" not in text


def test_short_noise_is_for_strategies_that_have_it(capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["--tiny", *SMALL, "--no-equal-cost", "--warm_up_steps", "0"]
    assert run(*arguments, "--strategy=self-duplicate:noise=short") == 0
    assert "| self-duplicate:noise=short | 4 |" in capsys.readouterr().out
    assert run(*arguments, "--strategy=merge:noise=short") == 1
    captured = capsys.readouterr()
    assert captured.out == ""
    assert "strategy 'merge' does not fit noise='short'" in captured.err


def test_diffusers_pipelines_are_loaded_and_compared(capsys: pytest.CaptureFixture[str]) -> None:
    pipe = tiny_diffusers_t2v()
    with mock.patch("diffusers.DiffusionPipeline.from_pretrained", return_value=pipe) as load:
        code = run("--diffusers", "some/model", *SMALL, "--sample_shift", "8", "--no-equal-cost", "--warm_up_steps=0")
    assert code == 0
    assert load.call_args.args == ("some/model",)
    text = capsys.readouterr().out
    assert "- pipeline: diffusers WanPipeline" in text
    assert "- weights: as loaded from some/model" in text
    assert "- shift: 8.0" in text
    assert "- guidance scale: 4.0\n- guidance scale 2: 3.0" in text


def test_image_pipelines_are_refused(capsys: pytest.CaptureFixture[str]) -> None:
    with mock.patch("diffusers.DiffusionPipeline.from_pretrained", return_value=tiny_diffusers_i2v()):
        assert run("--diffusers", "some/model") == 1
    assert "WanImageToVideoPipeline needs an image" in capsys.readouterr().err


def test_official_pipelines_are_built_from_upstream_s_config(
    t2v: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from halfframe.testing import import_wan

    built: dict[str, Any] = {}

    def build(**arguments: Any) -> Any:
        built.update(arguments)
        monkeypatch.setattr("torch.cuda.is_available", lambda: False)
        return t2v

    monkeypatch.setattr(import_wan("text2video"), "WanT2V", build)
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    code = run("--ckpt_dir", str(tmp_path), *SMALL, "--sdpa", "--no-offload", "--no-equal-cost", "--warm_up_steps=0")
    assert code == 0
    assert built["config"].boundary == 0.875
    assert built["checkpoint_dir"] == str(tmp_path)
    text = capsys.readouterr().out
    assert "- shift: 12.0\n- guide scale: (3.0, 4.0)\n- offload model: False\n- attention: SDPA" in text


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "nothing given; needed: one of VIDEO files, --tiny, --tinywan, --diffusers, --ckpt_dir"),
        (["a.mp4", "--tiny"], "VIDEO files and --tiny given"),
        (["a.mp4"], "1 video files; needed: a baseline and one variant"),
        (["a.mp4", "b.mp4"], "the baseline cannot be used: there is no video file 'a.mp4'"),
        (["--tiny", "--size", "big"], "--size must be WIDTHxHEIGHT in pixels, such as 832x480, got 'big'"),
        (["--tiny", "--frame_num", "16"], "16 video frames is not 4n+1; use 13 or 17"),
        (["--tiny", "--frame_num", "0"], "0 video frames is not 4n+1; use 1 or 5"),
        (["--tiny", "--sample_steps", "0"], "steps=0"),
        (["--tiny", "--strategy", "slef-duplicate"], "slef-duplicate"),
        (["--tiny", "--strategy", "none"], "--strategy none computes all frames"),
        (["--tiny", "--cfg_truncate_steps", "-1"], "skip_last must be an integer >= 0, got -1"),
        (["--ckpt_dir", "/no/such/folder"], "/no/such/folder is not there; give a folder of weights"),
        (["--ckpt_dir", ".", "--task", "ti2v-5B"], "--task ti2v-5B cannot be compared here"),
        (["--diffusers", "/no/such/folder"], "/no/such/folder is not there; give a folder of weights"),
    ],
)
def test_mistakes_are_one_line(arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(*arguments) == 1
    errors = [line for line in capsys.readouterr().err.splitlines() if "error:" in line]
    assert len(errors) == 1
    assert errors[0].startswith("halfframe compare: error: ")
    assert message in errors[0]


def test_the_official_pipeline_needs_a_gpu(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    with mock.patch("torch.cuda.is_available", return_value=False):
        assert run("--ckpt_dir", str(tmp_path)) == 1
    assert "needs a CUDA GPU; --tiny runs on this machine" in capsys.readouterr().err


def test_import_halfframe_imports_none_of_it() -> None:
    code = (
        "import sys, halfframe; found = {'skimage', 'matplotlib', 'imageio', 'PIL', 'halfframe.compare'} & "
        "set(sys.modules); assert not found, found; import halfframe.cli.compare; "
        "found = {'skimage', 'matplotlib', 'imageio', 'lpips'} & set(sys.modules); assert not found, found"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
