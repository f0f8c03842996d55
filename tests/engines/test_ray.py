"""examples/ray_batch.py on a real Ray: two actors on CPUs, every clip as one process makes it."""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import halfframe
from halfframe.testing import TINY

from . import ray_pipelines

HERE = Path(__file__).parent
SCRIPT = HERE.parents[1] / "examples" / "ray_batch.py"
needs_ray = pytest.mark.skipif(importlib.util.find_spec("ray") is None, reason="make test-engines brings Ray")

spec = importlib.util.spec_from_file_location("ray_batch", SCRIPT)
assert spec is not None
assert spec.loader is not None
ray_batch = importlib.util.module_from_spec(spec)
sys.modules["ray_batch"] = ray_batch
spec.loader.exec_module(ray_batch)

OFFICIAL = {"frame_num": 17, "size": [48, 32], "sampling_steps": 4, "shift": 12.0, "offload_model": False}
DIFFUSERS = {
    "num_frames": 17, "height": 32, "width": 48, "num_inference_steps": 4, "max_sequence_length": TINY.text_len,
}  # fmt: skip
PROMPTS = ["a red ball", "a cat", "stripes", "a red ball"]


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Ray with two CPUs; actors find the example and the factories."""
    ray = pytest.importorskip("ray")
    os.environ["RAY_AUTH_MODE"] = "disabled"  # nobody else is to join
    mark = tmp_path_factory.mktemp("dying") / "mark"
    path = os.pathsep.join([str(SCRIPT.parent), str(HERE), os.environ.get("PYTHONPATH", "")])
    variables = {"PYTHONPATH": path, "OMP_NUM_THREADS": "1", "HALFFRAME_DYING": str(mark)}
    ray.init(num_cpus=2, include_dashboard=False, log_to_driver=False, runtime_env={"env_vars": variables})
    yield mark
    ray.shutdown()


def written(path: Path, rows: list[dict[str, Any]]) -> Path:
    if path.suffix == ".parquet":
        import pyarrow
        import pyarrow.parquet

        pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), path)
    else:
        path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def expected(pipe: Any, row: dict[str, Any], strategy: str | None) -> Any:
    """The clip as one process makes it."""
    if strategy is None:
        return ray_batch.generate(pipe, row)
    with halfframe.enabled(pipe, strategy):
        return ray_batch.generate(pipe, row)


def told(output: Path, identity: str) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((output / f"{identity}.json").read_text())
    return found


@needs_ray
@pytest.mark.parametrize("kind", ["official", "diffusers"])
def test_every_clip_is_that_of_one_process(kind: str, cluster: Path, tmp_path: Path) -> None:
    arguments = OFFICIAL if kind == "official" else DIFFUSERS
    wrong = {"size": [48]} if kind == "official" else {"height": 33}
    rows = [{"prompt": prompt, "seed": n % 3, **arguments} for n, prompt in enumerate(PROMPTS)]
    rows.insert(2, {"prompt": "bad", **arguments, **wrong})
    path = written(tmp_path / ("rows.jsonl" if kind == "official" else "rows.parquet"), rows)
    rows = ray_batch.read(path)
    settings = ray_batch.Settings(("function", f"ray_pipelines:{kind}"), "merge", str(tmp_path), "npy")
    results = {row["id"]: row["error"] for row in ray_batch.run(rows, settings, actors=2, gpus=0)}
    assert sorted(results) == [f"{n:06}" for n in range(5)]
    pipe = getattr(ray_pipelines, kind)()
    for row in rows:
        said = told(tmp_path, row["id"])
        if row["prompt"] == "bad":
            assert said["error"].startswith("IndexError" if kind == "official" else "ValueError: `height` and `width`")
            assert said["error"] == results[row["id"]]
            assert "Traceback" in said["traceback"]
            assert not (tmp_path / "000002.npy").exists()
            continue
        assert not results[row["id"]]
        video = np.load(tmp_path / said["video"])
        assert video.shape == (17, 32, 48, 3)
        assert np.array_equal(video, expected(pipe, row, "merge"))
        assert not np.array_equal(video, expected(pipe, row, None))
        assert said["report"]["strategy"] == "merge"
        assert said["report"]["saved"]
    clips = [np.load(tmp_path / f"{n:06}.npy") for n in (0, 4)]
    assert np.array_equal(*clips), "one prompt and one seed, whichever actor"
    assert len({told(tmp_path, row["id"])["process"] for row in rows}) == 2
    assert not list(tmp_path.glob(".0*")), "no partial files"


@needs_ray
def test_a_process_that_dies_is_started_again(cluster: Path, tmp_path: Path) -> None:
    rows = ray_batch.read(written(tmp_path / "rows.jsonl", [{"prompt": prompt, **OFFICIAL} for prompt in PROMPTS]))
    settings = ray_batch.Settings(("function", "ray_pipelines:dying"), "merge", str(tmp_path), "npy")
    results = list(ray_batch.run(rows, settings, actors=2, gpus=0))
    assert cluster.exists(), "one process died"
    assert [row["error"] for row in results] == [""] * 4
    pipe = ray_pipelines.official()
    for row in rows:
        assert np.array_equal(np.load(tmp_path / f"{row['id']}.npy"), expected(pipe, row, "merge"))


def command(tmp_path: Path, *arguments: str) -> Any:
    path = os.pathsep.join([str(HERE), os.environ.get("PYTHONPATH", "")])
    return subprocess.run(
        [sys.executable, str(SCRIPT), str(tmp_path / "rows.jsonl"), str(tmp_path / "out"), *arguments],
        env={**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": "1", "RAY_AUTH_MODE": "disabled"},
        capture_output=True,
        text=True,
        check=False,
        timeout=170,
    )


@needs_ray
def test_the_command_and_going_on(tmp_path: Path) -> None:
    rows: list[dict[str, Any]] = [{"id": f"clip-{n}", "prompt": text, **OFFICIAL} for n, text in enumerate(PROMPTS[:3])]
    rows[1]["sampling_steps"] = "four"
    written(tmp_path / "rows.jsonl", rows)
    recipe = tmp_path / "own.json"
    halfframe.Recipe(("merge:2", "full", "reuse", "full")).save(recipe)
    options = ["--pipeline", "ray_pipelines:official", "--actors", "2", "--gpus", "0", "--strategy", str(recipe)]
    first = command(tmp_path, *options)
    assert first.returncode == 1, first.stderr
    assert "3 rows, 0 done before, 3 to make" in first.stdout
    assert "2 clips, 1 failed: clip-1" in first.stdout
    output = tmp_path / "out"
    lines = [json.loads(line) for line in (output / "results.jsonl").read_text().splitlines()]
    assert [line["request"]["id"] for line in lines] == ["clip-0", "clip-1", "clip-2"]
    assert lines[0]["report"]["moves"] == ["merge:2", "full", "reuse", "full"]
    assert (output / "clip-0.mp4").stat().st_size

    before = {name: (output / name).stat().st_mtime_ns for name in ("clip-0.mp4", "clip-2.mp4")}
    (output / "clip-2.mp4").unlink()
    rows[1]["sampling_steps"] = 4
    written(tmp_path / "rows.jsonl", rows)
    second = command(tmp_path, *options)
    assert second.returncode == 0, second.stderr
    assert "3 rows, 1 done before, 2 to make" in second.stdout
    assert (output / "clip-0.mp4").stat().st_mtime_ns == before["clip-0.mp4"]
    assert (output / "clip-2.mp4").stat().st_mtime_ns != before["clip-2.mp4"]

    third = command(tmp_path, *options)
    assert third.returncode == 0
    assert "3 rows, 3 done before, 0 to make" in third.stdout
    halfframe.Recipe(("full", "full", "reuse", "full")).save(recipe)
    assert "recipe.json is another recipe than" in command(tmp_path, *options).stderr
    rows[0]["seed"] = 99
    written(tmp_path / "rows.jsonl", rows)
    changed = command(tmp_path, *options[:-1], str(output / "recipe.json"))
    assert changed.returncode == 2
    assert "clip-0.json was made of" in changed.stderr
    assert "'seed': 99" in changed.stderr


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([{"text": "a"}], "row 0 of .* has no text under 'prompt'"),
        ([{"prompt": "a", "id": "../a"}], "row 0 of .* has the id '../a'; needed: letters"),
        ([{"prompt": "a", "id": "x"}, {"prompt": "b", "id": "x"}], "rows 0 and 1 of .* have one id, 'x'"),
    ],
)
def test_rows_that_cannot_be_made(rows: list[dict[str, Any]], message: str, tmp_path: Path) -> None:
    with pytest.raises(ray_batch.RefusedError, match=message):
        ray_batch.read(written(tmp_path / "rows.jsonl", rows))


def test_files_that_are_none(tmp_path: Path) -> None:
    with pytest.raises(ray_batch.RefusedError, match=r"nowhere.jsonl is not there; give a file of prompts"):
        ray_batch.read(tmp_path / "nowhere.jsonl")
    (tmp_path / "rows.jsonl").write_text("a cat\n")
    with pytest.raises(ray_batch.RefusedError, match=r"is no JSONL: .*; needed: a JSON object on every line"):
        ray_batch.read(tmp_path / "rows.jsonl")
