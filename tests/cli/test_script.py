"""The source's command lines on an unmodified script, in a process of its own, on a checkpoint in upstream's format."""

from __future__ import annotations

import importlib
import os
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

import halfframe
from halfframe.cli.script import _path_for
from halfframe.testing import StandInTextEncoder, WanSizes, tiny_wan_t2v

SCRIPT = Path(__file__).parent / "checkout" / "generate.py"
PROMPT = "A woman walking in a park"
COMMON = ["--task", "t2v-A14B", "--frame_num", "49", "--prompt", PROMPT]
SMALL = ["--size", "32*32", "--sample_steps", "8", "--base_seed", "3", "--offload_model", "False"]


@pytest.fixture(scope="module")
def pipeline() -> Any:
    # WanModel's config leaves out text_dim, so a checkpoint always loads with upstream's 4096.
    return tiny_wan_t2v(sizes=WanSizes(text_dim=4096), text_encoder=StandInTextEncoder(8, 4096))


@pytest.fixture(scope="module")
def checkpoint(pipeline: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return saved_checkpoint(pipeline, tmp_path_factory.mktemp("Wan2.2-T2V-A14B"))


def saved_checkpoint(pipeline: Any, folder: Path) -> Path:
    """A folder in upstream's format: two DiT subfolders and the VAE's weights."""
    config = importlib.import_module("wan.configs").WAN_CONFIGS["t2v-A14B"]
    pipeline.high_noise_model.save_pretrained(folder / config.high_noise_checkpoint)
    pipeline.low_noise_model.save_pretrained(folder / config.low_noise_checkpoint)
    torch.save(pipeline.vae.model.state_dict(), folder / config.vae_checkpoint)
    return folder


def run(*command: str, processes: int = 1) -> subprocess.CompletedProcess[str]:
    launcher = ["-m", "torch.distributed.run", f"--nproc_per_node={processes}"] if processes > 1 else []
    return subprocess.run(
        [sys.executable, *launcher, *command],
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=False,
        timeout=300,
    )


def expected(pipeline: Any, strategy: str | None = "self-duplicate", **options: Any) -> torch.Tensor:
    """The video of the same run in this process, where `enabled` is called by hand."""
    config = importlib.import_module("wan.configs").WAN_CONFIGS["t2v-A14B"]
    pipeline.sample_neg_prompt = config.sample_neg_prompt
    with halfframe.enabled(pipeline, strategy, **options):
        video: torch.Tensor = pipeline.generate(
            PROMPT,
            size=(32, 32),
            frame_num=49,
            sampling_steps=8,
            shift=config.sample_shift,
            guide_scale=config.sample_guide_scale,
            seed=3,
            offload_model=False,
        )
    return video


# The three command lines of the source, as written but for the prefix, the folder and the size.
LINES: dict[str, tuple[list[str], dict[str, Any]]] = {
    "half": (["--enable_half_frame_generation"], {}),
    "improved": (
        ["--enable_half_frame_generation", "--enable_improved_frame_completion"],
        {"strategy": "previous-odd"},
    ),
    "half and cfg": (
        [
            "--enable_half_frame_generation",
            "--enable_improved_frame_completion",
            "--cfg_truncate_steps",
            "5",
            "--cfg_truncate_high_noise_steps",
            "3",
        ],
        {"strategy": "previous-odd", "guidance": halfframe.Guidance(skip_last=5, skip_last_high=3)},
    ),
}


@pytest.mark.parametrize("line", LINES)
def test_the_command_lines_of_the_source(line: str, pipeline: Any, checkpoint: Path, tmp_path: Path) -> None:
    flags, options = LINES[line]
    saved = tmp_path / "video.pt"
    arguments = [*COMMON, "--ckpt_dir", str(checkpoint), *flags, *SMALL, "--save_file", str(saved)]
    finished = run("-m", "halfframe", str(SCRIPT), *arguments)
    assert finished.returncode == 0, finished.stderr
    strategy = options.get("strategy", "self-duplicate")
    assert f"halfframe report: {strategy} on wan, 49 video frames" in finished.stdout
    torch.testing.assert_close(torch.load(saved), expected(pipeline, **options), rtol=0, atol=1e-5)


def test_halfframe_run_with_a_double_dash_and_cfg_alone(pipeline: Any, checkpoint: Path, tmp_path: Path) -> None:
    saved = tmp_path / "video.pt"
    arguments = [*COMMON, "--ckpt_dir", str(checkpoint), *SMALL, "--save_file", str(saved), "--cfg_truncate_steps", "4"]
    finished = run("-m", "halfframe", "run", str(SCRIPT), "--", *arguments)
    assert finished.returncode == 0, finished.stderr
    video = expected(pipeline, None, guidance=halfframe.Guidance(skip_last=4))
    torch.testing.assert_close(torch.load(saved), video, rtol=0, atol=1e-5)


def test_two_processes_under_torchrun(pipeline: Any, checkpoint: Path, tmp_path: Path) -> None:
    """Each rank halves alike; the report is printed once."""
    saved = tmp_path / "video.pt"
    arguments = [*COMMON, "--ckpt_dir", str(checkpoint), *SMALL, "--save_file", str(saved)]
    arguments += ["--enable_half_frame_generation"]
    finished = run("-m", "halfframe", str(SCRIPT), *arguments, processes=2)
    assert finished.returncode == 0, finished.stderr
    assert "rank 1: creating" in finished.stdout
    assert finished.stdout.count("halfframe report: ") == 1
    torch.testing.assert_close(torch.load(saved), expected(pipeline), rtol=0, atol=1e-5)


def test_ulysses_in_two_processes(pipeline: Any, checkpoint: Path, tmp_path: Path) -> None:
    """Official sequence parallelism: 7 frames of 4 tokens are padded to the group size on both ranks alike."""
    saved = tmp_path / "video.pt"
    arguments = [*COMMON, "--ckpt_dir", str(checkpoint), *SMALL, "--save_file", str(saved)]
    arguments += ["--enable_half_frame_generation", "--ulysses_size", "2"]
    finished = run("-m", "halfframe", str(SCRIPT), *arguments, processes=2)
    assert finished.returncode == 0, finished.stderr
    # Upstream's parallel attention runs in bfloat16, which the single process here does not.
    torch.testing.assert_close(torch.load(saved), expected(pipeline), rtol=0, atol=0.1)


def test_ulysses_over_two_hosts(tmp_path: Path) -> None:
    """The README's line for several hosts: two launchers of two processes each, as one group of four."""
    sizes = WanSizes(text_dim=4096, num_heads=4)  # Ulysses gives each process whole heads
    four = tiny_wan_t2v(sizes=sizes, text_encoder=StandInTextEncoder(8, 4096))
    saved = tmp_path / "video.pt"
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    arguments = [*COMMON, "--ckpt_dir", str(saved_checkpoint(four, tmp_path / "weights")), *SMALL]
    arguments += ["--save_file", str(saved), "--enable_half_frame_generation", "--ulysses_size", "4"]
    launchers = [
        subprocess.Popen(
            [
                *(sys.executable, "-m", "torch.distributed.run", "--nnodes=2", f"--node_rank={node}"),
                *("--nproc_per_node=2", "--master_addr=127.0.0.1", f"--master_port={port}"),
                *("-m", "halfframe", str(SCRIPT), *arguments),
            ],
            env={**os.environ, "OMP_NUM_THREADS": "1"},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for node in range(2)
    ]
    try:
        outputs = [launcher.communicate(timeout=300) for launcher in launchers]
    finally:
        for launcher in launchers:
            launcher.kill()
    assert [launcher.returncode for launcher in launchers] == [0, 0], outputs
    told = [stdout for stdout, _ in outputs]
    assert [stdout.count("halfframe report: ") for stdout in told] == [1, 0]
    assert "rank 3: creating" in told[1]
    # Upstream's parallel attention runs in bfloat16, which the single process here does not.
    torch.testing.assert_close(torch.load(saved), expected(four), rtol=0, atol=0.1)


def fails(message: str, *arguments: str) -> None:
    finished = run("-m", "halfframe", *arguments)
    assert finished.returncode == 1, finished.stdout
    assert message in finished.stderr
    assert "Traceback" not in finished.stderr
    assert finished.stderr.strip().count("\n") == 0


def test_a_task_without_expert_switch_is_refused_before_weights_load(tmp_path: Path) -> None:
    message = "halfframe run: error: --task ti2v-5B has no expert switch"
    fails(message, str(SCRIPT), "--task", "ti2v-5B", "--ckpt_dir", str(tmp_path), "--enable_half_frame_generation")


def test_a_script_that_builds_no_pipeline(tmp_path: Path) -> None:
    (tmp_path / "wan").symlink_to(SCRIPT.parent / "wan")
    script = tmp_path / "other.py"
    script.write_text("print('nothing to see')\n")
    fails("other.py ended without building a pipeline", str(script), "--enable_half_frame_generation")


def test_a_script_that_leaves_by_sys_exit(checkpoint: Path, tmp_path: Path) -> None:
    (tmp_path / "wan").symlink_to(SCRIPT.parent / "wan")
    script = tmp_path / "leaves.py"
    script.write_text(SCRIPT.read_text().replace("    main()", "    import sys; main(); sys.exit(0)"))
    arguments = [*COMMON, "--ckpt_dir", str(checkpoint), *SMALL, "--enable_half_frame_generation"]
    finished = run("-m", "halfframe", str(script), *arguments)
    assert finished.returncode == 0, finished.stderr
    assert "halfframe report: self-duplicate on wan" in finished.stdout
    script.write_text("import sys; sys.exit()")
    fails("leaves.py ended without building a pipeline", str(script), "--enable_half_frame_generation")


def test_a_recipe_on_the_command_line(pipeline: Any, checkpoint: Path, tmp_path: Path) -> None:
    recipe, saved = tmp_path / "recipe.json", tmp_path / "video.pt"
    halfframe.Recipe(("full", "merge:2", "merge:2+cond", *["full"] * 4, "full+delta")).save(recipe)
    arguments = [*COMMON, "--ckpt_dir", str(checkpoint), *SMALL, "--save_file", str(saved)]
    finished = run("-m", "halfframe", str(SCRIPT), *arguments, "--strategy", str(recipe))
    assert finished.returncode == 0, finished.stderr
    assert "halfframe report: recipe of 8 steps on wan" in finished.stdout
    torch.testing.assert_close(torch.load(saved), expected(pipeline, str(recipe)), rtol=0, atol=1e-5)


@pytest.mark.parametrize("flags", [[], ["-I"]], ids=["plain", "isolated"])
def test_the_scripts_sys_path_is_that_of_python(flags: list[str], tmp_path: Path) -> None:
    """From another working directory, and by a link to the script."""
    folder, work = tmp_path / "checkout", tmp_path / "work"
    folder.mkdir()
    work.mkdir()
    script = folder / "shows.py"
    script.write_text("import json, sys\nprint('PATH', json.dumps(sys.path))\n")
    (work / "link.py").symlink_to(script)
    (folder / "wan.py").write_text("")
    for name in ("link.py", str(script)):
        lines = []
        for prefix, rest in (([], []), (["-m", "halfframe"], ["--enable_half_frame_generation"])):
            finished = subprocess.run(
                [sys.executable, *flags, *prefix, name, *rest], cwd=work, capture_output=True, text=True, check=False
            )
            lines += [line for line in finished.stdout.splitlines() if line.startswith("PATH")]
            if not lines:
                assert "`wan` cannot be imported" in finished.stderr
        if flags:  # `wan.py` is not found without the script's folder, which is what `python -I` leaves out
            assert str(folder) not in lines[0]
        else:
            assert lines[0] == lines[1]


def test_the_command_leaves_its_own_folder_out_of_sys_path(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    script = tmp_path / "generate.py"
    rest = ["/usr/lib/python", "/site-packages"]
    monkeypatch.setattr(sys, "argv", ["/opt/bin/halfframe", "run", str(script)])
    monkeypatch.setattr(sys, "path", ["/opt/bin", *rest])
    assert _path_for(script) == [str(tmp_path), *rest]
    monkeypatch.setattr(sys, "path", rest)  # somebody else's process, which calls `main`
    assert _path_for(script) == [str(tmp_path), *rest]
