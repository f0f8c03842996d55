"""Nothing is lost without a word: full disks, two writers, links, names that are HTML."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import imageio.v2 as imageio
import numpy as np
import pytest

from halfframe.compare import Comparison, Run, Trial, Variant, compare_files, write_video
from halfframe.compare.output import Writer
from halfframe.compare.quality import Quality
from halfframe.compare.results import Results

LIMITED = "import resource, sys; resource.setrlimit(resource.RLIMIT_FSIZE, ({0}, {0})); "
LIMITED += "from halfframe.cli import main; sys.exit(main(sys.argv[1:]))"


def clip(level: int = 100) -> np.ndarray:
    return np.full((9, 32, 32, 3), level, np.uint8)


def command(code: str, *arguments: str) -> subprocess.Popen[str]:
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    return subprocess.Popen(
        [sys.executable, "-c", code, "compare", *arguments], stderr=subprocess.PIPE, text=True, env=environment
    )


def two_videos(folder: Path) -> list[str]:
    noise = np.random.default_rng(0).random((17, 64, 64, 3)).astype(np.float32) * 0.8
    return [str(write_video(folder / name, noise + more)) for name, more in (("a.npy", 0.0), ("b.npy", 0.1))]


@pytest.mark.skipif(sys.platform == "win32", reason="there is no limit on the size of files")
def test_what_did_not_fit_is_said_at_the_end_and_in_the_exit_status(tmp_path: Path) -> None:
    small = ["--tiny", "--size", "64x48", "--frame_num", "17", "--sample_steps", "3", "--warm_up_steps", "0"]
    process = command(LIMITED.format(40_000), *small, "--no-equal-cost", "--output", str(tmp_path))
    assert process.stderr is not None
    said = process.stderr.read()
    assert process.wait(120) == 1, said
    last = said[said.index("written to") :]
    assert max(map(len, last.splitlines())) < 600
    for name in ("case-1-seed-0.mp4", "report.html"):
        assert f"error: {name} was not written" in last
        assert not list(tmp_path.rglob(name))
    assert not list(tmp_path.rglob(".part-*"))
    rows = json.loads((tmp_path / "comparison.json").read_text())["variants"]
    assert [len(row["trials"]) for row in rows] == [1, 1]  # no result is lost with them
    for path in tmp_path.rglob("*.mp4"):
        with imageio.get_reader(path) as reader:
            assert reader.count_frames() == 17


def test_two_comparisons_into_one_folder_both_stay(tmp_path: Path) -> None:
    videos, out = two_videos(tmp_path), tmp_path / "out"
    code = LIMITED.format(2**40)
    both = [command(code, *pair, "--output", str(out)) for pair in (videos, [videos[0], videos[0]])]
    for process in both:
        assert process.stderr is not None
        said = process.stderr.read()
        assert process.wait(120) == 0, said
    found = sorted(path.name for path in out.iterdir())
    kinds = ("comparison.json", "comparison.md", "per-frame.png", "report.html", "side-by-side.mp4", "side-by-side.png")
    names = [Path(kind) for kind in kinds]
    assert found == sorted([*kinds, *(f"{name.stem}-2{name.suffix}" for name in names)])
    tables = [json.loads((out / name).read_text()) for name in ("comparison.json", "comparison-2.json")]
    assert sorted(len(table["facts"]["files"]) for table in tables) == [2, 2]
    assert {tuple(table["facts"]["files"]) for table in tables} == {tuple(videos), (videos[0], videos[0])}


def test_an_input_in_the_output_folder_is_not_overwritten(tmp_path: Path) -> None:
    first = write_video(tmp_path / "side-by-side.mp4", clip())
    second = write_video(tmp_path / "comparison.mp4", clip(120))
    before = first.read_bytes()
    assert compare_files([first, second], output=tmp_path).lost == []
    assert first.read_bytes() == before
    assert (tmp_path / "side-by-side-2.mp4").is_file()


def test_links_are_not_followed(tmp_path: Path) -> None:
    theirs = tmp_path / "theirs"
    theirs.mkdir()
    (theirs / "report").write_text("a report of theirs")
    out = tmp_path / "out"
    out.mkdir()
    (out / "case").symlink_to(theirs)
    (out / "report.html").symlink_to(theirs / "report")
    (out / "other.mp4").symlink_to(theirs / "new")  # to nothing yet
    result = Comparison(Results(Variant("baseline"), 4), [])
    writer = Writer(out)
    writer.clip(result, clip(), "case", "baseline")
    assert "is a link" in result.lost[0]
    writer.pictures(result, {"baseline": clip()}, "other", "t")
    writer.finish(result)
    assert sorted(path.name for path in theirs.iterdir()) == ["report"]
    assert (theirs / "report").read_text() == "a report of theirs"
    assert "<!doctype html>" in (out / "report-2.html").read_text()
    assert (out / "other-2.mp4").is_file()


def test_what_links_took_the_place_of_is_not_gone_on_from(tmp_path: Path) -> None:
    victim = tmp_path / "victim"
    victim.write_text("theirs")
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "comparison.md").symlink_to(victim)
    result = Comparison(Results(Variant("baseline"), 4), [])
    Writer(tmp_path / "out", earlier={"files": [["comparison.md", "", "comparison.md"]]}).tables(result)
    assert victim.read_text() == "theirs"
    assert result.lost == []


def test_prompts_names_and_errors_are_no_html(tmp_path: Path) -> None:
    evil = "<img src=x onerror=alert(1)> | </script>"
    quality = Quality(0.01, (20.0,), None, None, None, {"ssim": evil})
    rows = [
        Results(Variant("baseline"), 4, [Trial(evil, 0, (Run(2.0, 4),), (9, 32, 32, 3))]),
        Results(Variant(evil, {}, note=evil), 4, [Trial(evil, 0, (Run(1.0, 4),), (9, 32, 32, 3), None, quality)], evil),
    ]
    result = Comparison(rows[0], rows[1:], {"prompts": [evil], "machine": evil}, [evil])
    writer = Writer(tmp_path)
    writer.pictures(result, {"baseline": clip(), evil: clip(90)}, "case", evil)
    writer.finish(result)
    assert result.lost == []
    page, text = (tmp_path / "report.html").read_text(), (tmp_path / "comparison.md").read_text()
    assert page.count("<img") == 0
    assert page.count("</script>") == 2
    assert page.count("&lt;img src=x") > 6
    assert "<img" not in text.replace("\\<img", "")
    table = [line for line in text.splitlines() if line.startswith("| ")]
    assert len({line.replace("\\|", "").count("|") for line in table}) == 1  # the same cells in every row
