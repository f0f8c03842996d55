"""The example plugin package, installed by pip and used as somebody else would use it."""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path

EXAMPLE = Path(__file__).parents[1] / "examples" / "halfframe-crossfade"

# One process for all of it, because importing torch and building a pipeline is what takes the time.
PROGRAM = """
import os
import pathlib
import sys

import torch
torch.set_num_threads(1)  # more only wait for each other at this size

import halfframe
from halfframe.testing import tiny_wan_t2v
from halfframe_crossfade import crossfade

log = pathlib.Path(sys.argv[1])

(info,) = [info for info in halfframe.strategies() if info.name == "crossfade"]
assert (info.distribution, info.version) == ("halfframe-crossfade", "0.1.0"), info
assert info.value == "halfframe_crossfade.strategy:crossfade", info

for count in range(1, 10):
    kept = torch.randn(2, (count + 1) // 2, 1, 1)
    clip = crossfade(kept, count, weight=0.25)
    assert clip.shape == (2, count, 1, 1)
    assert clip.is_contiguous()
    for position in range(count):
        earlier = kept[:, position // 2]
        later = kept[:, min(position // 2 + 1, kept.shape[1] - 1)]
        expected = earlier if position % 2 == 0 else 0.75 * earlier + 0.25 * later
        torch.testing.assert_close(clip[:, position], expected)

pipe = tiny_wan_t2v()
arguments = dict(size=(32, 32), frame_num=17, sampling_steps=4, shift=12.0, seed=1, offload_model=False)


def run(strategy, **options):
    with halfframe.enabled(pipe, strategy, **options) as run:
        video = pipe.generate("a kite", **arguments)
    assert run.report.strategy.split(':')[0] == strategy
    assert run.report.high.latent_frames == (3,)
    assert run.report.low.latent_frames == (5,)
    return video


midway = run("crossfade")
assert not log.exists()  # nothing is written unless asked for
os.environ["HALFFRAME_RUN_LOG"] = str(log)
explicit = run("crossfade", weight=0.5)
earlier = run("crossfade", weight=0)
duplicated = run("self-duplicate")

assert midway.shape == (3, 17, 32, 32)
assert torch.isfinite(midway).all()
assert torch.equal(midway, explicit)
assert torch.equal(earlier, duplicated)
assert not torch.equal(midway, earlier)

try:
    run("crossfade", weight=2)
except halfframe.OptionError as error:
    assert "weight must be in 0..1, got 2" in str(error), error
else:
    raise AssertionError("weight=2 was accepted")
try:
    run("crossfade", blend=1)
except halfframe.OptionError as error:
    assert "strategy 'crossfade' does not fit blend=1" in str(error), error
else:
    raise AssertionError("blend=1 was accepted")
print("all as expected")
"""


def pip_install(target: Path, source: Path) -> None:
    """Install `source` alone into `target`; offline if the hatchling that is here can build it."""
    command = [sys.executable, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--no-deps"]
    if importlib.util.find_spec("hatchling"):
        command.append("--no-build-isolation")
    done = subprocess.run([*command, "--target", str(target), str(source)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_the_example_plugin_installs_and_serves(tmp_path: Path) -> None:
    before = {path for path in EXAMPLE.rglob("*") if "__pycache__" not in path.parts}
    site = tmp_path / "site"
    pip_install(site, EXAMPLE)
    assert {path for path in EXAMPLE.rglob("*") if "__pycache__" not in path.parts} == before  # nothing is left behind

    log = tmp_path / "runs.jsonl"
    environment = {key: value for key, value in os.environ.items() if key != "HALFFRAME_RUN_LOG"}
    path = os.pathsep.join(filter(None, [str(site), environment.get("PYTHONPATH")]))
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, str(log)],
        env={**environment, "PYTHONPATH": path},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    assert "all as expected" in done.stdout

    lines = [json.loads(line) for line in log.read_text().splitlines()]
    assert [line["strategy"] for line in lines] == ["crossfade:weight=0.5", "crossfade:weight=0", "self-duplicate"]
    for line in lines:
        assert line["high"]["latent_frames"] == [3]
        assert line["frame_steps"] < line["frame_steps_full"]
