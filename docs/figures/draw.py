"""Draws the figures of the pages from halfframe's own frame maps: ``python docs/figures/draw.py``. Plain SVG."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

from halfframe.sampling.frame_map import FrameMap
from halfframe.sampling.strategy import Step
from halfframe.strategies.merge import Merge

FOLDER = Path(__file__).parent
INK, GREY, PALE, HIGH, LOW = "#263238", "#78909c", "#eceff1", "#3f51b5", "#00897b"

LAYERS: tuple[tuple[str, tuple[str, ...], str], ...] = (
    ("commands", ("cli", "__main__"), "halfframe run, plan, demo, compare, tune, strategies, doctor"),
    ("measuring", ("compare", "tuning"), "plain, faster and fewer steps beside each other; recipes"),
    ("switching on", ("enabled", "handle", "plan"), "with halfframe.enabled(pipe); halfframe.plan(...)"),
    ("hosts", ("hosts",), "official package, diffusers, ComfyUI"),
    ("plugins", ("plugins",), "entry points, hooks, options, names of strategies"),
    ("strategies", ("strategies",), "merge, interleave, self-duplicate, ..., Recipe"),
    ("sampling", ("sampling",), "frame map, schedule, guidance, expert switch, the run"),
    ("report", ("report",), "what was computed, what that costs"),
    ("errors", ("errors", "testing"), "messages; tiny pipelines for tests"),
)
"""From the top: a layer, its modules, what they do. A module imports from its own layer and those below it."""


def main() -> None:
    """Write all figures beside this file."""
    for name, drawn in figures().items():
        (FOLDER / name).write_text(drawn, encoding="utf-8")


def figures() -> dict[str, str]:
    """File name -> SVG."""
    return {"frames.svg": frames(), "sigma.svg": sigma(), "layers.svg": layers()}


def frames() -> str:
    """Thirteen latent frames through two steps of `merge` and one of the low-noise expert."""
    cell, left, top, gap = 42, 206, 46, 74
    total = 13

    def x(position: float) -> float:
        return left + cell * (position + 0.5)

    drawn = [_text(left, 24, "latent frame", GREY, anchor="end", dx=-14)]
    drawn += [_text(x(frame), 24, str(frame), GREY, anchor="middle") for frame in range(total)]
    rows: list[tuple[str, FrameMap | None]] = [
        ("high-noise expert, step 1", _merge(0, 0.999)),
        ("high-noise expert, step 2", _merge(1, 0.996)),
        ("low-noise expert", None),
    ]
    y = top
    for label, frame_map in rows:
        colour = LOW if frame_map is None else HIGH
        drawn.append(_clip_row(x, y, total))
        drawn.append(_text(left - 14, y + 5, "the clip, all frames", GREY, anchor="end"))
        places = frame_map.positions if frame_map else tuple(map(float, range(total)))
        down = frame_map.down if frame_map else [[float(i == k) for i in range(total)] for k in range(total)]
        up = frame_map.up if frame_map else down
        middle = y + gap
        drawn.append(
            f'<rect x="{left - 4}" y="{middle - 21}" width="{cell * total + 8}" height="42" rx="8" '
            f'fill="{colour}" fill-opacity="0.09" stroke="{colour}"/>'
        )
        drawn += [
            _line(x(frame), y + 13, x(places[k]), middle - 14, colour, 0.75 * weight + 0.1)
            for k, row in enumerate(down)
            for frame, weight in enumerate(row)
            if weight
        ]
        drawn += [
            _line(x(places[k]), middle + 14, x(frame), middle + gap - 13, colour, 0.6 * weight)
            for frame, row in enumerate(up)
            for k, weight in enumerate(row)
            if weight
        ]
        drawn += [_square(x(place), middle, colour, 13) for place in places]
        drawn.append(_text(left - 14, middle - 3, label, colour, anchor="end", bold=True))
        drawn.append(_text(left - 14, middle + 14, f"computes {len(places)} of {total}", colour, anchor="end"))
        y = middle + gap
    drawn.append(_clip_row(x, y, total))
    drawn.append(_text(left - 14, y + 5, "the finished clip", GREY, anchor="end"))
    return _svg(left + cell * total + 16, y + 28, drawn, "Means of two of 13 latent frames go to the high-noise expert")


def sigma() -> str:
    """The noise level of a clip, and the one at which the expert is given means of its frames."""
    width, height, left, top = 560, 340, 70, 24
    low, high = 0.86, 1.0
    span = high - low

    def x(value: float) -> float:
        return left + (value - low) / span * width

    def y(value: float) -> float:
        return top + (high - value) / span * height

    drawn = [f'<rect x="{left}" y="{top}" width="{width}" height="{height}" fill="none" stroke="{GREY}"/>']
    for tick in (0.86, 0.88, 0.90, 0.92, 0.94, 0.96, 0.98, 1.0):
        drawn += [
            _line(x(tick), top, x(tick), top + height, GREY, 0.2),
            _line(left, y(tick), left + width, y(tick), GREY, 0.2),
        ]
        drawn.append(_text(x(tick), top + height + 20, f"{tick:.2f}", GREY, anchor="middle"))
        drawn.append(_text(left - 8, y(tick) + 5, f"{tick:.2f}", GREY, anchor="end"))
    drawn.append(_text(left + width / 2, top + height + 44, "sigma of the clip", INK, anchor="middle"))
    drawn.append(
        f'<text x="18" y="{top + height / 2}" transform="rotate(-90 18 {top + height / 2})" text-anchor="middle" '
        f'fill="{INK}">sigma that the expert is told</text>'
    )
    drawn.append(_line(left, y(0.875), left + width, y(0.875), LOW, 1, dashed=True))
    drawn.append(
        _text(left + width - 8, y(0.875) + 18, "boundary 0.875: below it the low-noise expert", LOW, anchor="end")
    )
    levels = [0.875 + 0.125 * i / 200 for i in range(200)]
    lines = ((1, INK, 0.35, "one frame"), (2, HIGH, 1.0, "mean of 2"), (3, HIGH, 0.65, "of 3"), (4, HIGH, 0.35, "of 4"))
    for stride, colour, shade, label in lines:
        told = levels if stride == 1 else [_merge(0, level, stride).sigma(level) for level in levels]
        points = " ".join(f"{x(a):.1f},{y(b):.1f}" for a, b in zip(levels, told, strict=True))
        key = top + 6 + 20 * stride
        for path in (points, f"{left + 16},{key} {left + 52},{key}"):
            drawn.append(
                f'<polyline points="{path}" fill="none" stroke="{colour}" stroke-opacity="{shade}" stroke-width="2.2"/>'
            )
        drawn.append(_text(left + 62, key + 5, label, INK))
    return _svg(left + width + 20, top + height + 60, drawn, "A mean of frames is a frame at a lower noise level")


def layers() -> str:
    """Who imports whom."""
    width, left, high, step = 740, 20, 46, 58
    drawn = []
    for index, (name, modules, what) in enumerate(LAYERS):
        y = 14 + index * step
        colour = HIGH if index < 3 else LOW if index < 6 else INK
        drawn.append(
            f'<rect x="{left}" y="{y}" width="{width}" height="{high}" rx="8" fill="{colour}" fill-opacity="0.09" '
            f'stroke="{colour}"/>'
        )
        drawn.append(_text(left + 14, y + 28, name, colour, bold=True))
        drawn.append(_text(left + 128, y + 28, ", ".join(m for m in modules if m != "__main__"), INK, bold=True))
        drawn.append(_text(left + 300, y + 28, what, GREY))
        if index:
            drawn.append(f'<path d="M{left + 60} {y - 12} l5 8 l5 -8 z" fill="{GREY}"/>')
    return _svg(left * 2 + width, 14 + step * len(LAYERS), drawn, "Layers: each imports from those below it")


def _merge(index: int, sigma: float, stride: int = 2) -> FrameMap:
    step = Step(index, 20, 1000 * sigma, sigma, "high", index, 13, 13, boundary=875.0)
    return Merge(stride=stride).frame_map(step)


def _clip_row(x: Callable[[float], float], y: float, total: int) -> str:
    return "".join(_square(x(frame), y, GREY, 11) for frame in range(total))


def _square(x: float, y: float, colour: str, half: float) -> str:
    return (
        f'<rect x="{x - half:.1f}" y="{y - half:.1f}" width="{2 * half:.1f}" height="{2 * half:.1f}" rx="3" '
        f'fill="{colour}" fill-opacity="0.55" stroke="{colour}"/>'
    )


def _line(x1: float, y1: float, x2: float, y2: float, colour: str, opacity: float, dashed: bool = False) -> str:
    dash = ' stroke-dasharray="5 4"' if dashed else ""
    return (
        f'<line x1="{x1:.1f}" y1="{y1:.1f}" x2="{x2:.1f}" y2="{y2:.1f}" stroke="{colour}" '
        f'stroke-opacity="{opacity:.2f}" stroke-width="1.5"{dash}/>'
    )


def _text(x: float, y: float, text: str, colour: str, anchor: str = "start", bold: bool = False, dx: float = 0) -> str:
    weight = ' font-weight="bold"' if bold else ""
    return f'<text x="{x + dx:.1f}" y="{y:.1f}" text-anchor="{anchor}" fill="{colour}"{weight}>{text}</text>'


def _svg(width: float, height: float, drawn: Iterable[str] | Sequence[str], title: str) -> str:
    body = "\n".join(drawn)
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width:.0f} {height:.0f}" width="{width:.0f}" '
        f'height="{height:.0f}" font-family="system-ui, sans-serif" font-size="13" role="img">\n'
        f'<title>{title}</title>\n<rect width="100%" height="100%" fill="white"/>\n{body}\n</svg>\n'
    )


if __name__ == "__main__":
    main()
