"""The whole command on a CPU: small experts, real hosts, one process and two."""

from __future__ import annotations

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

SCRIPT = str(Path(suite.__file__))
SMALL = ["--tiny", "--clips", "17x32x32", "--steps", "6"]


def sections(folder: Path) -> dict[str, Any]:
    data = json.loads((folder / "suite.json").read_text())
    return {section["host"]: section for section in data["sections"]}


def computed(run: dict[str, Any]) -> list[tuple[str, int, int]]:
    return [(kind["expert"], kind["latent_frames"], kind["count"]) for kind in run["forwards"]]


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What a run on one process leaves, latents included."""
    folder = tmp_path_factory.mktemp("results")
    arguments = [*SMALL, "--hosts", "wan", "diffusers", "--variants", "interleave+cfg"]
    saving = ["--output", str(folder), "--save-latents", str(folder / "latents.pt")]
    assert suite.main([*arguments, *saving]) == 0
    return folder


def test_both_hosts_are_measured(saved: Path) -> None:
    plan = halfframe.plan(
        frame_num=17, sampling_steps=6, guidance=halfframe.Guidance(skip_last=5, skip_last_high=3)
    ).report
    for section in sections(saved).values():
        (plain,), (half,) = (section["trials"][name]["runs"] for name in ("baseline", "interleave+cfg"))
        assert computed(plain) == [("high", 5, 8), ("low", 5, 4)]
        assert computed(half) == [("high", 3, plan.high.passes), ("low", 5, plan.low.passes)]
        for run in (plain, half):
            parts = [run["solver"], run["vae"], run["text"], *(kind["seconds"] for kind in run["forwards"])]
            assert min(parts) > 0
            assert sum(parts) < run["seconds"]
            assert run["finite"]
            assert run["peak_host_gib"] > 0
        assert plain["report"] is None
        assert half["report"]["strategy"] == "interleave"
        assert half["enabling"] > 0
        assert sorted(section["alone"]) == ["3", "5"]
    assert {"wan", "diffusers"} == set(sections(saved))
    page = (saved / "suite.md").read_text()
    assert "## wan: 17 frames 32x32" in page
    assert "(ext.)" not in page


def test_the_clocks_are_put_away(saved: Path) -> None:
    solver = sys.modules["wan.text2video"].FlowUniPCMultistepScheduler.step  # type: ignore[attr-defined]
    assert not hasattr(solver, "__wrapped__")


def test_going_on_adds_what_is_missing(saved: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "suite.json").write_text((saved / "suite.json").read_text())
    again = [*SMALL, "--variants", "interleave+cfg", "cfg", "--output", str(tmp_path)]
    assert suite.main(again) == 1
    assert "is there already" in capsys.readouterr().err
    assert suite.main([*again, "--resume"]) == 0
    before, after = sections(saved)["wan"]["trials"], sections(tmp_path)["wan"]["trials"]
    assert after["baseline"] == before["baseline"]
    assert after["interleave+cfg"] == before["interleave+cfg"]
    assert computed(after["cfg"]["runs"][0]) == [("high", 5, 5), ("low", 5, 2)]
    assert sections(tmp_path)["diffusers"] == sections(saved)["diffusers"]


def test_a_shortened_run_and_offloading(tmp_path: Path) -> None:
    arguments = ["--tiny", "--clips", "17x32x32", "--run-steps", "3", "--offload", "--variants", "self-duplicate"]
    assert suite.main([*arguments, "--output", str(tmp_path)]) == 0
    section = sections(tmp_path)["wan"]
    assert (section["offload"], section["steps"], section["run_steps"]) == (True, 20, 3)
    assert computed(section["trials"]["self-duplicate"]["runs"][0]) == [("high", 3, 4), ("low", 5, 2)]
    page = (tmp_path / "suite.md").read_text()
    assert "extrapolated to the steps named from runs of 3 steps (2 high-noise and 1 low-noise" in page
    assert "(ext.) |" in page


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--hosts", "diffusers", "--offload"], "for --hosts wan alone"),
        (["--fsdp"], "several processes"),
        (["--run-steps", "7"], "no more than --steps"),
        (["--variants", "interleaf"], "interleaf"),
    ],
)
def test_refusals(arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert suite.main([*SMALL, *arguments]) == 1
    assert message in capsys.readouterr().err


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
    assert finished.stdout.count("## wan: 17 frames 32x32") == 1
    one, two = sections(saved)["wan"]["trials"], sections(tmp_path)["wan"]["trials"]
    for name in ("baseline", "interleave+cfg"):
        assert computed(two[name]["runs"][0]) == computed(one[name]["runs"][0])
        # Not bit for bit, or the two processes were none.
        assert 0 < two[name]["runs"][0]["off_by"] < 0.01


def test_latents_that_are_not_the_same_fail_the_command(saved: Path, tmp_path: Path) -> None:
    latents = torch.load(saved / "latents.pt")
    torch.save({key: 1.1 * value for key, value in latents.items()}, tmp_path / "others.pt")
    check = ["--check-against", str(tmp_path / "others.pt")]
    assert suite.main([*SMALL, "--variants", "interleave+cfg", *check]) == 1
    torch.save({}, tmp_path / "others.pt")
    assert suite.main([*SMALL, "--variants", "interleave+cfg", *check]) == 1
