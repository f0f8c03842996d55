"""Turns and their spread, progress, and going on after an interruption."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from halfframe.compare import Comparison, Variant, compare, fewer_steps, markdown, progress
from halfframe.compare.report_page import read_sheets
from halfframe.compare.unfinished import Unfinished
from halfframe.errors import OptionError

VARIANTS = [fewer_steps(3), fewer_steps(2)]
CASES = {"prompts": ["a", "bc"], "seeds": [0], "steps": 4, "warm_up_steps": 0}


class Machine:
    """Makes clips that depend on prompt, seed and steps, until it is interrupted."""

    def __init__(self, last: int = 10**9) -> None:
        self.calls: list[tuple[str, int]] = []
        self._last = last

    def __call__(self, prompt: str, seed: int, steps: int) -> np.ndarray:
        self.calls.append((prompt, steps))
        if len(self.calls) > self._last:
            raise KeyboardInterrupt
        noise = np.random.default_rng([len(prompt), seed]).random((5, 16, 16, 3))
        return noise * 0.5 + 0.4 / steps


def figures(comparison: Comparison) -> list[Any]:
    return [[(trial.prompt, trial.quality, trial.shape) for trial in row.trials] for row in comparison.rows]


def test_runs_are_made_in_turns_and_their_spread_is_shown(monkeypatch: pytest.MonkeyPatch) -> None:
    seconds = iter([10.0, 5.0, 40.0, 10.0, 12.0, 8.0])  # the second turn falls on a machine that is busy
    now = [0.0]
    machine = Machine()

    def generate(prompt: str, seed: int, steps: int) -> np.ndarray:
        now[0] += next(seconds)
        return machine(prompt, seed, steps)

    monkeypatch.setattr("halfframe.compare.timing.clock", lambda device, synchronize: now[0])
    result = compare(generate, [fewer_steps(2)], prompts=["a"], steps=4, warm_up_steps=0, repeat=3)
    assert machine.calls == [("a", 4), ("a", 2)] * 3
    assert [run.seconds for run in result.baseline.runs] == [10, 40, 12]
    assert result.speedups(result.variants[0]) == [2, 4, 1.5]
    assert result.speedup(result.variants[0]) == 2
    assert "| fewer steps, 2 | 2 | 1 | 8.00 (5.00 to 10.00) | 2.00x (1.50 to 4.00) |" in markdown(result)


def test_a_clip_that_comes_out_otherwise_is_said() -> None:
    count = iter(range(100))
    result = compare(
        lambda *_: np.full((5, 16, 16, 3), 0.01 * next(count)),
        [Variant("v")],
        prompts=["a"],
        steps=4,
        warm_up_steps=0,
        repeat=2,
    )
    assert any("v: another run of the same prompt and seed gave another clip" in note for note in result.notes)


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Comparison]:
    """A comparison that nobody interrupted."""
    folder = tmp_path_factory.mktemp("whole")
    return folder, compare(Machine(), VARIANTS, output=folder, repeat=2, **CASES)


@pytest.mark.parametrize("last", [0, 2, 4, 7, 11])
def test_it_goes_on_wherever_it_was_interrupted(tmp_path: Path, whole: tuple[Path, Comparison], last: int) -> None:
    first, then = Machine(last), Machine()
    with pytest.raises(KeyboardInterrupt):
        compare(first, VARIANTS, output=tmp_path / "out", repeat=2, **CASES)
    assert not list((tmp_path / "out").rglob(".part-*"))
    result = compare(then, VARIANTS, output=tmp_path / "out", repeat=2, resume=True, **CASES)
    assert then.calls == [(prompt, steps) for prompt in ("a", "bc") for steps in (4, 3, 2) * 2][last:]
    assert figures(result) == figures(whole[1])
    assert all(len(trial.runs) == 2 for row in result.rows for trial in row.trials)
    files = [
        sorted(str(path.relative_to(folder)) for path in folder.rglob("*")) for folder in (whole[0], tmp_path / "out")
    ]
    assert files[0] == files[1]
    assert read_sheets(whole[0] / "report.html") == read_sheets(tmp_path / "out" / "report.html")

    again = Machine()
    compare(again, VARIANTS, output=tmp_path / "out", repeat=2, resume=True, **CASES)
    assert again.calls == []


def test_an_interruption_while_a_clip_is_written_loses_no_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr("halfframe.compare.output.write_video", interrupted)
        with pytest.raises(KeyboardInterrupt):
            compare(Machine(), VARIANTS, output=tmp_path, **CASES)
    assert not list(tmp_path.rglob("*.mp4"))
    assert not list(tmp_path.rglob(".part-*"))
    machine = Machine()
    compare(machine, VARIANTS, output=tmp_path, resume=True, **CASES)
    assert len(machine.calls) == 5  # the first clip was made
    assert len(list(tmp_path.rglob("*.mp4"))) == 2 * 3 + 2


def test_files_outside_of_the_folder_are_not_taken_for_its_own(tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt):
        compare(Machine(4), VARIANTS, output=tmp_path / "out", **CASES)
    path = tmp_path / "out" / "comparison.json"
    data = json.loads(path.read_text())
    path.write_text(json.dumps({**data, "files": [["comparison.md", "", "../theirs"]]}))
    with pytest.raises(OptionError, match="outside of its folder"):
        compare(Machine(), VARIANTS, output=tmp_path / "out", resume=True, **CASES)


def test_what_failed_is_tried_again(tmp_path: Path) -> None:
    def broken(prompt: str, seed: int, steps: int) -> np.ndarray:
        if steps == 3:
            raise RuntimeError("out of memory")
        return Machine()(prompt, seed, steps)

    assert compare(broken, VARIANTS, output=tmp_path, **CASES).failures
    machine = Machine()
    result = compare(machine, VARIANTS, output=tmp_path, resume=True, **CASES)
    assert not result.failures
    assert machine.calls == [("a", 4), ("a", 3), ("bc", 4), ("bc", 3)]
    assert [len(row.trials) for row in result.rows] == [2, 2, 2]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"steps": 5}, "steps"),
        ({"prompts": ["a", "x"]}, "prompts"),
        ({"variants": [*VARIANTS, Variant("new")]}, "variant 'new'"),
    ],
)
def test_another_comparison_is_not_gone_on_with(tmp_path: Path, changes: dict[str, Any], message: str) -> None:
    with pytest.raises(KeyboardInterrupt):
        compare(Machine(4), VARIANTS, output=tmp_path, **CASES)
    before = (tmp_path / "comparison.json").read_text()
    arguments: dict[str, Any] = {"variants": VARIANTS, **CASES, **changes}
    with pytest.raises(OptionError, match=f"other settings .*{message}"):
        compare(Machine(), arguments.pop("variants"), output=tmp_path, resume=True, **arguments)
    assert (tmp_path / "comparison.json").read_text() == before


def test_without_anything_to_go_on_from_it_begins(tmp_path: Path) -> None:
    machine = Machine()
    compare(machine, VARIANTS, output=tmp_path, resume=True, **CASES)
    assert len(machine.calls) == 6
    (tmp_path / "comparison.json").write_text("{")
    with pytest.raises(OptionError, match="nothing to go on from"):
        compare(machine, VARIANTS, output=tmp_path, resume=True, **CASES)
    with pytest.raises(OptionError, match="without output"):
        compare(machine, VARIANTS, resume=True, **CASES)


def test_two_do_not_go_on_with_the_same(tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt):
        compare(Machine(4), VARIANTS, output=tmp_path, **CASES)
    name = json.loads((tmp_path / "comparison.json").read_text())["unfinished"]
    other = Unfinished(tmp_path, name)
    with pytest.raises(OptionError, match="another comparison goes on"):
        compare(Machine(), VARIANTS, output=tmp_path, resume=True, **CASES)
    other.close()
    compare(Machine(), VARIANTS, output=tmp_path, resume=True, **CASES)


def test_the_command_says_how_to_go_on(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "halfframe", "compare", "--tiny", "--size", "32x32", "--frame_num", "9"]
    command += ["--sample_steps", "4", "--strategy", "merge", "--repeat", "50", "--output", str(tmp_path / "out")]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env={**os.environ, "OMP_NUM_THREADS": "1"})
    assert process.stderr is not None
    for line in process.stderr:
        if "took" in line:
            process.send_signal(signal.SIGINT)
            break
    rest = process.stderr.read()
    assert process.wait(60) == 130
    assert "interrupted; what is finished is in" in rest
    assert "Traceback" not in rest
    assert json.loads((tmp_path / "out" / "comparison.json").read_text())["variants"][0]["trials"]


def test_an_estimate_is_told_where_it_is_ten_seconds_or_more(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [0.0]
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    lines: list[str] = []
    work = progress.Progress(lines.append, 100)
    work.say("begun")
    for seconds, steps in ((20.0, 10), (20.0, 10), (20.0, 77), (1.0, 2)):
        now[0] += seconds
        work.done(steps, "done")
    work.add(3000)
    work.say("more")
    assert lines[0] == "begun"
    assert lines[1:5] == ["done; about 180 s left".replace("180 s", "3 min"), "done; about 3 min left", "done", "done"]
    assert lines[5].startswith("more; about 31 min left")
