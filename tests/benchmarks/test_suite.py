"""The whole command on a CPU: small experts, real hosts, one process and two."""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

import halfframe
import suite
from _parallel import Group, check_heads
from halfframe import Guidance
from halfframe.compare import Variant
from halfframe.errors import HalfframeError

SCRIPT = str(Path(suite.__file__))
SMALL = ["--tiny", "--clips", "17x32x32", "--steps", "6"]
CUT = {"guidance": Guidance(skip_last=5, skip_last_high=3)}
GROUP = Group(0, 1, torch.device("cpu"))


@pytest.mark.parametrize(
    ("text", "options"),
    [
        ("self-duplicate", {"strategy": "self-duplicate"}),
        ("interleave:stride=4+cfg", {"strategy": "interleave:stride=4", **CUT}),
        ("interleave:stride=3,until=end", {"strategy": "interleave:stride=3,until=end"}),
        ("cfg", {"strategy": "none", **CUT}),
    ],
)
def test_variants(text: str, options: dict[str, object]) -> None:
    assert suite.parse(text, (5, 3)) == Variant(text, options)


@pytest.mark.parametrize("text", ["", "+cfg", "self-duplicate+cgf", "interleave+cfg+cfg"])
def test_no_variants(text: str) -> None:
    with pytest.raises(HalfframeError, match="is no variant"):
        suite.parse(text, (5, 3))


@pytest.mark.parametrize("text", ["interleaf", "interleave:strode=4", "interleave:stride=0"])
def test_what_halfframe_would_refuse_is_refused_before_anything_is_built(text: str) -> None:
    with pytest.raises(HalfframeError):
        suite.parse(text, (5, 3))


def variants(folder: Path, title: str = "wan-17x32x32") -> dict[str, Any]:
    data = json.loads((folder / title / "comparison.json").read_text())
    return {row["name"]: row for row in data["variants"]}


def run_of(row: dict[str, Any]) -> dict[str, Any]:
    return dict(row["trials"][0]["runs"][0])


def computed(row: dict[str, Any]) -> list[tuple[str, int, int]]:
    return [(kind["expert"], kind["latent_frames"], kind["count"]) for kind in run_of(row)["passes"]]


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What a run on one process leaves, latents included."""
    folder = tmp_path_factory.mktemp("results")
    arguments = [*SMALL, "--hosts", "wan", "diffusers", "--variants", "interleave+cfg"]
    saving = ["--output", str(folder), "--save-latents", str(folder / "latents.pt")]
    assert suite.main([*arguments, *saving]) == 0
    return folder


@pytest.mark.parametrize("host", ["wan", "diffusers"])
def test_both_hosts_are_measured(saved: Path, host: str) -> None:
    plan = halfframe.plan(
        frame_num=17, sampling_steps=6, guidance=halfframe.Guidance(skip_last=5, skip_last_high=3)
    ).report
    rows = variants(saved, f"{host}-17x32x32")
    plain, half = rows["baseline"], rows["interleave+cfg"]
    assert computed(plain) == [("high", 5, 8), ("low", 5, 4)]
    assert computed(half) == [("high", 3, plan.high.passes), ("low", 5, plan.low.passes)]
    for run in map(run_of, (plain, half)):
        parts = [*run["parts"].values(), *(kind["seconds"] for kind in run["passes"])]
        assert set(run["parts"]) == {"scheduler", "vae", "text"}
        assert min(parts) > 0
        assert sum(parts) < run["seconds"]
        assert run["finite"]
        assert run["peak_host_gib"] > 0
    assert plain["trials"][0]["report"] is None
    assert half["trials"][0]["report"]["strategy"] == "interleave"
    assert run_of(half)["enabling"] > 0
    folder = saved / f"{host}-17x32x32"
    assert f"- pipeline: {host}" in (folder / "comparison.md").read_text()
    assert "(ext.)" not in (folder / "comparison.md").read_text()
    assert "<dt>interleave+cfg</dt>" in (folder / "report.html").read_text()


def test_the_clocks_are_put_away(saved: Path) -> None:
    scheduler = sys.modules["wan.text2video"].FlowUniPCMultistepScheduler.step  # type: ignore[attr-defined]
    assert not hasattr(scheduler, "__wrapped__")


def test_going_on_adds_what_is_missing(tmp_path: Path) -> None:
    arguments = [*SMALL, "--output", str(tmp_path), "--variants", "interleave+cfg"]
    assert suite.main(arguments) == 0
    before = variants(tmp_path)
    assert suite.main([*arguments, "cfg", "--resume"]) == 0
    after = variants(tmp_path)
    for name in ("baseline", "interleave+cfg"):
        assert after[name]["trials"] == before[name]["trials"]
    assert computed(after["cfg"]) == [("high", 5, 5), ("low", 5, 2)]
    assert suite.main(arguments) == 0  # without --resume nothing is overwritten
    assert variants(tmp_path) == after
    assert (tmp_path / "wan-17x32x32" / "comparison-2.json").is_file()


def test_a_shortened_run_and_offloading(tmp_path: Path) -> None:
    arguments = ["--tiny", "--clips", "17x32x32", "--run-steps", "3", "--offload", "--variants", "self-duplicate"]
    assert suite.main([*arguments, "--output", str(tmp_path)]) == 0
    half = variants(tmp_path, "wan-17x32x32-offload")["self-duplicate"]
    assert (half["steps"], half["extrapolated"]) == (20, True)
    assert computed(half) == [("high", 3, 4), ("low", 5, 2)]
    page = (tmp_path / "wan-17x32x32-offload" / "comparison.md").read_text()
    assert "extrapolated to the steps named from runs of 3 steps" in page
    assert "offload model: True" in page


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--hosts", "diffusers", "--offload"], "for --hosts wan alone"),
        (["--fsdp"], "several processes"),
        (["--run-steps", "7"], "no more than --steps"),
        (["--variants", "interleaf"], "interleaf"),
        (["--clips", "48x32x32"], "48 video frames is not 4n+1"),
    ],
)
def test_refusals(arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert suite.main([*SMALL, *arguments]) == 1
    assert message in capsys.readouterr().err


@pytest.mark.parametrize("text", ["49x832", "49x832x48o"])
def test_no_clips(text: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        suite.main(["--clips", text])
    assert f"value: '{text}'" in capsys.readouterr().err


def launch(*arguments: str) -> subprocess.CompletedProcess[str]:
    """The command in two processes, which have latents of one process to agree with."""
    return subprocess.run(
        [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node=2", SCRIPT, *SMALL, *arguments],
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=False,
        timeout=300,
    )


def test_two_processes_agree_with_one(saved: Path, tmp_path: Path) -> None:
    """Upstream's own Ulysses; what it computes in bfloat16 is all that differs from one process."""
    check = ["--check-against", str(saved / "latents.pt"), "--tolerance", "0.01"]
    finished = launch("--variants", "interleave+cfg", "--output", str(tmp_path), *check)
    assert finished.returncode == 0, finished.stderr
    assert finished.stdout.count("# halfframe compare") == 1
    one, two = variants(saved), variants(tmp_path)
    for name in ("baseline", "interleave+cfg"):
        assert computed(two[name]) == computed(one[name])
        # Not bit for bit, or the two processes were none.
        assert 0 < run_of(two[name])["off_by"] < 0.01
    # Going on: the first process alone reads what is there, and both have it.
    finished = launch("--variants", "interleave+cfg", "cfg", "--output", str(tmp_path), "--resume")
    assert finished.returncode == 0, finished.stderr
    assert variants(tmp_path)["baseline"]["trials"] == two["baseline"]["trials"]
    assert "cfg" in variants(tmp_path)


def latents(**arguments: Any) -> suite.Latents:
    usual = {"save_latents": None, "check_against": None, "tolerance": 0.01, "resume": False}
    return suite.Latents(argparse.Namespace(**{**usual, **arguments}), GROUP)


def test_latents_are_checked(tmp_path: Path) -> None:
    file, noise = tmp_path / "latents.pt", torch.randn(16, 2, 4, 4)
    latents(save_latents=file).take("clip", noise)
    check = latents(check_against=file)
    assert check.take("another clip", noise) is None
    assert "has nothing of what was run" in check.failures()[0]
    assert check.take("clip", 1.005 * noise) == pytest.approx(0.005, rel=1e-3)
    assert check.failures() == []
    for wrong in (1.02, float("nan")):
        check.take("clip", wrong * noise)
        assert "clip: latents are off by" in check.failures()[0]


def test_latents_of_an_earlier_command_stay_if_it_is_gone_on_from(tmp_path: Path) -> None:
    file = tmp_path / "latents.pt"
    for key, resume in (("first", False), ("second", True)):
        latents(save_latents=file, resume=resume).take(key, torch.ones(2))
    assert sorted(torch.load(file)) == ["first", "second"]
    latents(save_latents=file).take("third", torch.ones(2))
    assert sorted(torch.load(file)) == ["third"]


def test_latents_that_are_not_the_same_fail_the_command(saved: Path, tmp_path: Path) -> None:
    known = torch.load(saved / "latents.pt")
    check = ["--check-against", str(tmp_path / "others.pt")]
    for others in ({key: 1.1 * value for key, value in known.items()}, {}):
        torch.save(others, tmp_path / "others.pt")
        assert suite.main([*SMALL, "--variants", "interleave+cfg", *check]) == 1


def test_heads_that_cannot_be_shared() -> None:
    check_heads(40, 8)
    with pytest.raises(HalfframeError, match=r"3 processes cannot share 40 attention heads.*Use 2, 4, 5, 8, 10"):
        check_heads(40, 3)
