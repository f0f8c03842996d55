"""The report page: what is in it without a browser, and what it does in one."""

from __future__ import annotations

import base64
import io
import json
import re
import shutil
import time
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from halfframe.compare.report_page import Frontier, clip_sheets, page, read_sheets
from halfframe.compare.tables import Table

EVIL = "</script><script>document.body.dataset.evil=1</script><img src=x onerror=\"document.title='evil'\">&"
FRAMES, HEIGHT, WIDTH = 7, 24, 32


def clips() -> dict[str, np.ndarray]:
    """The baseline's frame n is 10 n everywhere, the other's is 3 brighter."""
    ramp = np.arange(FRAMES, dtype=np.uint8)[:, None, None, None] * 10 + np.zeros((1, HEIGHT, WIDTH, 3), np.uint8)
    return {"baseline": ramp, f"other {EVIL}": ramp + 3}


def made(path: Path) -> Path:
    table = Table(["variant", "seconds"], [["baseline", "20.0"], [EVIL, "10.0"]])
    frontier = Frontier("seconds a clip", "PSNR, dB", {"halved": [(EVIL, 10.0, 30.0), ("b", 15.0, 41.5)], "rest": []})
    cases = [clip_sheets("one", f"'a cat' {EVIL}", clips()), clip_sheets("two", "a dog", clips(), fps=8)]
    path.write_text(page(f"report {EVIL}", EVIL, [table], cases, frontier, [EVIL]), encoding="utf-8")
    return path


class Tags(HTMLParser):
    """Counts tags, and gathers what they refer to."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.count: dict[str, int] = {}
        self.references: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.count[tag] = self.count.get(tag, 0) + 1
        self.references += [value or "" for name, value in attrs if name in ("src", "href", "srcset", "action", "data")]


def test_text_is_no_html_and_nothing_is_asked_of_a_network(tmp_path: Path) -> None:
    text = made(tmp_path / "report.html").read_text()
    tags = Tags(text)
    assert tags.count["script"] == 2  # the data and the program
    assert "img" not in tags.count
    assert tags.references == []
    assert EVIL not in text
    assert not re.search(r"https?:|url\(|import|fetch\(", text)
    assert "default-src 'none'" in text
    assert "{{" not in text


def test_every_frame_is_in_the_sheets_as_it_is(tmp_path: Path) -> None:
    cases = read_sheets(made(tmp_path / "report.html"))
    assert [(case["key"], case["frames"], case["fps"]) for case in cases] == [("one", FRAMES, 16), ("two", FRAMES, 8)]
    assert cases[0]["title"] == f"'a cat' {EVIL}"
    for one, clip in zip(cases[0]["clips"], clips().values(), strict=True):
        assert one["sheet"].startswith("data:image/webp;base64,")
        sheet = np.asarray(Image.open(io.BytesIO(base64.b64decode(one["sheet"].partition(",")[2]))).convert("RGB"))
        for number, frame in enumerate(clip):
            row, column = divmod(number, cases[0]["columns"])
            found = sheet[row * HEIGHT : (row + 1) * HEIGHT, column * WIDTH : (column + 1) * WIDTH]
            assert np.array_equal(found, frame)


def test_large_clips_are_shrunk_and_the_page_says_so() -> None:
    case = clip_sheets("one", "t", {"a": np.zeros((81, 480, 832, 3), np.uint8)})
    assert (case["width"], case["height"]) == (400, 231)
    assert case["shown"].startswith("81 frames of 832x480, shown at 400x231, compressed with loss")


def test_what_does_not_fit_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("halfframe.compare.report_page._LARGEST", 10)
    cases = [clip_sheets(name, name, clips()) for name in "abc"]
    text = page("t", "", [], cases)
    assert "clips of 2 of 3 cases are not on this page" in text
    assert len(json.loads(re.findall(r'id="data">(.*?)</script>', text, re.DOTALL)[0])) == 1


def test_both_axes_are_named_and_every_point_has_its_name() -> None:
    text = page(
        "t", "", [], (), Frontier("cost, s", "fidelity, dB", {"g": [("one & all", 1.5, 20.0), ("b", 2.0, 25.0)]})
    )
    svg = re.findall(r"<svg.*</svg>", text, re.DOTALL)[0]
    assert ">cost, s</text>" in svg
    assert ">fidelity, dB</text>" in svg
    assert re.findall("<title>(.*?)</title>", svg) == [
        "one &amp; all: cost, s 1.5, fidelity, dB 20",
        "b: cost, s 2, fidelity, dB 25",
    ]


def test_a_page_that_is_none_has_no_sheets(tmp_path: Path) -> None:
    assert read_sheets(tmp_path / "missing.html") == []
    (tmp_path / "other.html").write_text('<script type="application/json" id="data">{</script>')
    assert read_sheets(tmp_path / "other.html") == []


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    """A headless Chromium that is on this machine; nothing is downloaded."""
    path = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    if path is None:
        pytest.skip("there is no Chromium")
    api = pytest.importorskip("playwright.sync_api", reason="there is no playwright to drive Chromium with")
    with api.sync_playwright() as playwright:
        found = playwright.chromium.launch(executable_path=path, args=["--no-sandbox"])
        yield found
        found.close()


@pytest.mark.parametrize("theme", ["light", "dark"])
@pytest.mark.parametrize("width", [390, 1280])
def test_in_a_browser(browser: Any, tmp_path: Path, theme: str, width: int) -> None:
    context = browser.new_context(
        color_scheme=theme, viewport={"width": width, "height": 800}, reduced_motion="reduce", offline=True
    )
    tab = context.new_page()
    wrong: list[str] = []
    tab.on("pageerror", lambda error: wrong.append(str(error)))
    tab.on("console", lambda message: wrong.append(message.text) if message.type == "error" else None)
    asked: list[str] = []
    tab.on("request", lambda request: asked.append(request.url))
    tab.goto(made(tmp_path / "report.html").as_uri())
    tab.wait_for_selector("body[data-ready='0']")

    def levels() -> list[int]:
        red = "canvas => canvas.getContext('2d').getImageData(5, 5, 1, 1).data[0]"
        return list(tab.evaluate(f"[...document.querySelectorAll('#clips canvas')].map({red})"))

    assert levels() == [0, 3]
    assert tab.evaluate("document.documentElement.scrollWidth") <= width
    tab.click("#on")
    tab.click("#on")
    assert levels() == [20, 23]
    tab.click("#back")
    assert levels() == [10, 13]
    tab.locator("#frame").fill("6")
    assert levels() == [60, 63]
    tab.click("#on")  # round again
    assert levels() == [0, 3]
    tab.check("#difference")
    tab.select_option("#gain", "16")
    assert levels() == [0, 48]
    tab.uncheck("#difference")

    tab.click("#play")
    late = time.monotonic() + 20
    while int(tab.locator("#frame").input_value()) < 3:
        assert time.monotonic() < late, "it does not play"
    tab.click("#play")
    first, other = levels()
    assert other == first + 3  # in step
    assert first == 10 * int(tab.locator("#frame").input_value())
    tab.select_option("#case", "1")
    tab.wait_for_selector("body[data-ready='1']")

    tab.locator("#frontier circle.point").nth(1).focus()
    assert tab.locator("#named").inner_text() == "b: seconds a clip 15, PSNR, dB 41.5"
    tab.locator("#frontier circle.point").nth(0).hover()
    assert tab.locator("#named").inner_text().startswith(EVIL)
    assert tab.evaluate("document.body.dataset.evil") is None
    assert tab.title() == f"report {EVIL}"
    assert tab.locator("figcaption").all_inner_texts() == list(clips())
    assert tab.evaluate("document.documentElement.scrollWidth") <= width  # only the table scrolls sideways
    paper = tab.evaluate("getComputedStyle(document.body).backgroundColor")
    assert (sum(map(int, re.findall(r"\d+", paper))) < 3 * 128) == (theme == "dark")
    assert wrong == []
    assert all(url.startswith(("file:", "data:")) for url in asked)
    context.close()
