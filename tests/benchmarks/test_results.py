"""The file that outlives a command that is cut off."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest

from _output import comparison
from _results import Results, Trials
from _steps import Run

from .made_up import HALF, made_run, made_section

FACTS = {"device": "a GPU", "torch": "2.11.0", "wan version": "2.2.3"}


def written(path: Path) -> Results:
    results = Results(path, dict(FACTS), "first")
    section = made_section(
        3,
        baseline=Trials([made_run(3)], steps=20),
        interleave=Trials([made_run(3, HALF, report={"note": ""}, off_by=0.5)], 20, "FAILED: once"),
    )
    results.sections.append(section)
    results.write({"figures": []}, "text")
    return results


def test_what_is_read_is_what_was_written(tmp_path: Path) -> None:
    before = written(tmp_path / "suite.json")
    after = Results(tmp_path / "suite.json", dict(FACTS), "second")
    after.load(resume=True)
    assert after.sections == before.sections
    assert after.commands == ["first", "second"]
    assert after.section(made_section()) is after.sections[0]
    assert (tmp_path / "suite.md").read_text() == "text\n"
    assert sorted(file.name for file in tmp_path.iterdir()) == ["suite.json", "suite.md"]


@pytest.mark.parametrize(
    ("name", "value"), [("clip", "81x832x480"), ("steps", 40), ("truncation", (0, 0)), ("host", "diffusers")]
)
def test_another_setting_is_another_section(tmp_path: Path, name: str, value: Any) -> None:
    results = written(tmp_path / "suite.json")
    other = made_section()
    setattr(other, name, value)
    assert results.section(other) is other
    assert len(results.sections) == 2


def test_a_file_is_not_overwritten_unasked(tmp_path: Path) -> None:
    written(tmp_path / "suite.json")
    with pytest.raises(ValueError, match="is there already"):
        Results(tmp_path / "suite.json", dict(FACTS), "second").load(resume=False)


def test_another_machine_does_not_go_on(tmp_path: Path) -> None:
    written(tmp_path / "suite.json")
    other = Results(tmp_path / "suite.json", {**FACTS, "device": "another GPU"}, "second")
    with pytest.raises(ValueError, match="device was 'a GPU', is 'another GPU'"):
        other.load(resume=True)


def test_another_host_on_the_same_machine_does(tmp_path: Path) -> None:
    written(tmp_path / "suite.json")
    other = Results(
        tmp_path / "suite.json", {"device": "a GPU", "torch": "2.11.0", "diffusers version": "0.35"}, "second"
    )
    other.load(resume=True)
    assert other.facts == {**FACTS, "diffusers version": "0.35"}


def test_a_command_that_is_cut_off_while_writing_leaves_the_last_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    results = written(tmp_path / "suite.json")

    def cut_off(self: Path, text: str) -> None:
        with self.open("w") as file:
            file.write(text[:20])
        raise KeyboardInterrupt

    monkeypatch.setattr(Path, "write_text", cut_off)
    with pytest.raises(KeyboardInterrupt):
        results.write({}, "text")
    assert json.loads((tmp_path / "suite.json").read_text())["facts"] == FACTS


def test_runs_survive_json() -> None:
    run = made_run(3, HALF, peak_gpu_gib=70.0, report={"note": ""})
    assert Run.from_dict(json.loads(json.dumps(dataclasses.asdict(run)))) == run


def test_the_results_in_the_repository_are_read() -> None:
    found = sorted((Path(__file__).parents[2] / "benchmarks" / "results").glob("*.json"))
    assert found
    for path in found:
        data = json.loads(path.read_text())
        results = Results(path, data["facts"], "now")
        results.load(resume=True)
        for section, lines in zip(results.sections, data["figures"], strict=True):
            assert section.trials["baseline"].runs
            now = {line.name: line for line in comparison(section)}
            for line in lines:
                name = line["name"].replace("fewer steps: ", "fewer steps, ")
                if line["seconds"] is not None:
                    assert now[name].seconds == pytest.approx(line["seconds"], rel=1e-9), (path.name, name)
                    assert now[name].speedup == pytest.approx(line["speedup"], rel=1e-9)
