"""What a comparison writes, and that it can be read."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from halfframe.compare import (
    Comparison,
    Run,
    Trial,
    Variant,
    compare,
    compare_files,
    fewer_steps,
    markdown,
    write_video,
)
from halfframe.compare import output as output_module
from halfframe.compare import pictures as pictures_module
from halfframe.compare.extras import require
from halfframe.compare.output import Writer
from halfframe.compare.pictures import beside, strip
from halfframe.compare.quality import Quality
from halfframe.compare.results import Results
from halfframe.errors import HalfframeError


def clip(level: int = 100, num_frames: int = 9, height: int = 30, width: int = 40) -> np.ndarray:
    return np.full((num_frames, height, width, 3), level, np.uint8)


def comparison() -> Comparison:
    """A baseline of 20 s, a variant with a figure for everything, and a failed one."""
    quality = Quality(0.01, (20.0, float("inf")), (0.9, 1.0), None, 0.95, {"lpips": "not at hand"})
    baseline = Results(Variant("baseline"), 20, [Trial("a cat", 0, (Run(20.0, 20),), (2, 16, 16, 3), 1.01)])
    report = {"predicted_speedup": 1.5, "note": ""}
    halved = Results(
        Variant("halved", {"strategy": "x", "f": max}),
        20,
        [Trial("a cat", 0, (Run(16.0, 20),), (2, 16, 16, 3), 0.61, quality, report)],
    )
    failed = Results(fewer_steps(13, "at equal cost"), 13, [], "RuntimeError: a | b")
    return Comparison(baseline, [halved, failed], {"machine": "one", "prompts": ["a cat", "a dog"]}, ["a remark"])


def test_markdown_states_facts_figures_definitions_and_failures() -> None:
    text = markdown(comparison())
    assert "- machine: one\n- prompts: a cat; a dog\n" in text
    header = next(line for line in text.splitlines() if line.startswith("| variant"))
    assert header == (
        "| variant | steps | clips | seconds | speed-up | predicted | MSE | PSNR dB | SSIM | duplication | motion |"
    )
    assert "| baseline | 20 | 1 | 20.00 | 1.00x | 1.00x |  |  |  | 1.01 |  |" in text
    assert "| halved | 20 | 1 | 16.00 | 1.25x | 1.50x | 1.00e-02 | 20.0 (1 identical) | 0.950 | 0.61 | 0.95 |" in text
    assert "| fewer steps, 13 (failed) | 13 | 0 |  |  | 1.54x |" in text
    assert "- fewer steps, 13: at equal cost" in text
    assert "- fewer steps, 13: FAILED after 0 finished clips: RuntimeError: a \\| b" in text
    assert "- LPIPS is absent: not at hand" in text
    assert text.endswith("- a remark\n")


def test_json_is_strict_and_says_what_an_infinite_psnr_is(tmp_path: Path) -> None:
    Writer(tmp_path).tables(comparison())
    text = (tmp_path / "comparison.json").read_text()
    assert "Infinity" not in text
    data = json.loads(text)
    assert data["facts"]["machine"] == "one"
    assert data["absent_metrics"] == {"lpips": "not at hand"}
    halved = data["variants"][1]
    assert (halved["seconds"], halved["speedup"], halved["psnr_db"]) == (16.0, 1.25, 20.0)
    assert halved["options"]["f"] == "<built-in function max>"
    quality = halved["trials"][0]["quality"]
    assert (quality["psnr_frames"], quality["identical_frames"]) == ([20.0, None], 1)
    assert data["variants"][2]["error"] == "RuntimeError: a | b"
    assert not list(tmp_path.glob(".part-*"))


def test_a_run_leaves_tables_pictures_and_clips(tmp_path: Path) -> None:
    def generate(prompt: str, seed: int, steps: int) -> np.ndarray:
        noise = np.random.default_rng(seed).random((5, 16, 16, 3))
        return np.clip(noise * 0.8 + 0.4 / steps, 0, 1)

    variants = [fewer_steps(2), Variant("an: odd/name")]
    result = compare(generate, variants, prompts=["a"], seeds=[0, 5], steps=4, output=tmp_path, random_weights=True)
    assert result.notes == []
    found = sorted(str(path.relative_to(tmp_path)) for path in tmp_path.rglob("*") if path.is_file())
    cases = ("case-1-seed-0", "case-2-seed-5")
    names = ("an-odd-name", "baseline", "fewer-steps-2")
    expected = [f"{case}.{kind}" for case in cases for kind in ("mp4", "png")]
    expected += [f"{case}/{name}.mp4" for case in cases for name in names]
    assert found == sorted([*expected, "comparison.json", "comparison.md", "per-frame.png", "report.html"])
    assert "random" in json.loads((tmp_path / "comparison.json").read_text())["facts"]["weights"]


def test_a_picture_that_cannot_be_made_is_a_note(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: object, **__: object) -> None:
        raise OSError("no ink")

    monkeypatch.setattr(pictures_module, "strip", broken)
    result = compare(lambda *_: np.zeros((5, 16, 16, 3)), [fewer_steps(2)], prompts=["a"], steps=4, output=tmp_path)
    assert result.notes == ["case-1-seed-0.png was not written: OSError: no ink"]
    assert "no ink" in (tmp_path / "comparison.md").read_text()


def test_a_strip_has_a_row_per_variant_and_a_column_per_frame() -> None:
    levels = {"baseline": 50, "another variant with a long name": 90}
    picture = strip({name: clip(level) for name, level in levels.items()}, "a caption", columns=4, tile_width=80)
    pixels = np.asarray(picture)
    for level in (*levels.values(), 3 * (90 - 50)):  # the last is the difference, three times as strong
        found = (pixels == level).all(-1)
        assert 0 <= found.sum() - 4 * 80 * 60 < 50  # the edges of letters have all shades
    assert pixels.shape[1] > 4 * 80
    alone = np.asarray(strip({"baseline": clip(50)}, columns=4, tile_width=80))
    assert 0 <= (alone == 50).all(-1).sum() - 4 * 80 * 60 < 50
    assert not (alone == 0).all(-1).any()  # no row of differences from itself
    red = clip(0)
    red[..., 0] = 200
    clips = {"a": clip(0), "b": red, "smaller": clip(9, 9, 20, 20)}  # another size has no differences
    pixels = np.asarray(strip(clips, columns=4, tile_width=80))
    for colour in ((200, 0, 0), (255, 0, 0)):  # a difference is as strong as there is at most
        assert (pixels == colour).all(-1).sum() == 4 * 80 * 60


def test_a_long_strategy_is_broken_between_its_options() -> None:
    lines = pictures_module._wrapped("merge:until=0.99,stride=4,full_start=1, frame 6", 26)
    assert lines == ["merge: until=0.99,", "stride=4, full_start=1,", "frame 6"]
    assert pictures_module._wrapped("interleave:until=0.99, frame 6", 26) == ["interleave:until=0.99,", "frame 6"]


def test_clips_beside_each_other_keep_their_time() -> None:
    ramp = np.arange(9, dtype=np.uint8)[:, None, None, None] * 20 + np.zeros((1, 30, 40, 3), np.uint8)
    video = beside({"a": clip(7), "b": ramp, "c": clip(9), "d": clip(11, num_frames=6)}, columns=3)
    assert video.shape[0] == 6  # as long as the shortest
    assert video.shape[2] == 3 * 320 + 2 * 6
    for number in range(6):
        tile = 320 * 240
        counts = [(video[number] == level).all(-1).sum() for level in (7, 9, 11)]
        assert counts == [tile] * 3
        assert (video[number] == 20 * number).all(-1).sum() >= tile


def test_wide_clips_are_shrunk_to_fit() -> None:
    video = beside({name: clip(50, 2, 72, 1280) for name in "abc"})
    assert video.shape[2] <= 1920


def test_files_are_compared_with_the_first(tmp_path: Path) -> None:
    base = np.random.default_rng(0).random((9, 32, 32, 3)).astype(np.float32) * 0.8
    paths = [tmp_path / "a" / "baseline.npy", tmp_path / "same.pt", tmp_path / "brighter.npy", tmp_path / "short.npy"]
    for path, video in zip(paths, (base, base, base + 0.1, base[:5]), strict=True):
        write_video(path, video)
    result = compare_files(paths, output=tmp_path / "out")
    same, brighter, short = result.variants
    assert same.mean(lambda q: q.psnr) == float("inf")
    assert brighter.mean(lambda q: q.psnr) == pytest.approx(20, abs=1e-3)
    assert "the video has shape (5, 32, 32, 3)" in short.error
    text = (tmp_path / "out" / "comparison.md").read_text()
    assert "| same | 1 | 0.00e+00 | identical | 1.000 |" in text
    assert "what they cost to make is not known" in text
    assert "lossy" not in text
    assert {path.name for path in (tmp_path / "out").iterdir()} == {
        "comparison.json",
        "comparison.md",
        "per-frame.png",
        "report.html",
        "side-by-side.mp4",
        "side-by-side.png",
    }


def test_a_missing_package_is_asked_for_by_name() -> None:
    with pytest.raises(HalfframeError, match=r"not_there is needed to draw.*pip install 'halfframe\[compare\]'"):
        require("not_there", "draw")


def test_nothing_of_others_is_overwritten_and_every_row_has_its_file(tmp_path: Path) -> None:
    victim = tmp_path / "victim"
    victim.write_text("theirs")
    out = tmp_path / "out"
    out.mkdir()
    (out / "comparison.md").symlink_to(victim)
    (out / "comparison.json").write_text("an earlier one")
    writer, result = Writer(out), comparison()
    writer.tables(result)
    names = ["merge a/b", "merge a b", "///", "...", "x" * 300]
    for name in names:
        writer.clip(result, clip(), "case", name)
    assert result.lost == []
    assert victim.read_text() == "theirs"
    assert (out / "comparison.json").read_text() == "an earlier one"
    assert json.loads((out / "comparison-2.json").read_text())["baseline"] == "baseline"
    assert len(list((out / "case").iterdir())) == len(names)


def test_a_clip_that_is_cut_short_is_said_and_counted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = output_module.write_video
    monkeypatch.setattr(output_module, "write_video", lambda path, video, fps: whole(path, video[:-2], fps))
    result = comparison()
    Writer(tmp_path).clip(result, clip(), "case", "halved")
    assert "halved.mp4 was not written: OSError: 7 of 9 frames are in it" in result.lost[0]
    assert not list((tmp_path / "case").glob(".part-*"))


def test_tables_that_cannot_be_written_end_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "write_text", full)
    result = comparison()
    Writer(tmp_path).tables(result)
    assert len(result.lost) == 2


def test_prompts_and_names_are_escaped() -> None:
    result = comparison()
    result.facts["prompts"] = ["<script>alert(1)</script> *a* _b_"]
    text = markdown(result)
    assert "\\<script\\>alert(1)\\</script\\> \\*a\\* \\_b\\_" in text
