"""Makes the README's clip from TinyWan, a toy: ``python docs/figures/clip.py``, two minutes on a CPU.

It needs ``pip install . ./examples/halfframe-tinywan``. Prompt and seed are those of `halfframe demo`.
"""

from __future__ import annotations

import math
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import halfframe_tinywan as tinywan
import torch
from halfframe_tinywan.demo import PROMPT
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

import halfframe

TARGET = Path(__file__).parent / "clip.webp"
STEPS, SEED = 20, 0
RUNS: tuple[tuple[str, str | None, int], ...] = (
    ("plain", None, STEPS),
    ("the default: same take", halfframe.DEFAULT_STRATEGY, STEPS),
    ("fewer steps", None, 18),
    ("self-duplicate: another take", "self-duplicate", STEPS),
    ("fewer steps", None, 12),
)
"""What a panel shows, its strategy, its steps."""
EVERY, MILLISECONDS = 2, 125  # every second video frame, at the clip's own speed
SIDE, GAP, LINE = 160, 8, 16
SIZE_LIMIT = 400_000


def main() -> None:
    """Make the clips, and write them beside each other."""
    torch.set_num_threads(2)
    pipe = tinywan.load_diffusers()
    clips: list[Tensor] = []
    labels: list[tuple[str, str]] = []
    for name, strategy, steps in RUNS:
        with halfframe.enabled(pipe, strategy) if strategy else nullcontext():
            clips.append(tinywan.generate(pipe, [PROMPT], [SEED], steps=steps)[0])
        labels.append((name, described(strategy, steps, clips)))
        print(*labels[-1], sep=": ")
    write([panels(labels, [clip[:, frame] for clip in clips]) for frame in range(0, clips[0].shape[1], EVERY)])
    print(f"{TARGET}: {TARGET.stat().st_size / 1000:.0f} kB")


def described(strategy: str | None, steps: int, clips: list[Tensor]) -> str:
    """Cost in full steps at the sizes of A14B, 81 frames 1280x720, and PSNR of the last clip to the first."""
    cost = steps / halfframe.plan(strategy=strategy, sampling_steps=steps).predicted_speedup
    text = f"cost {cost:.1f}".removesuffix(".0")
    error = float((clips[-1] - clips[0]).square().mean())
    return f"{text}, {-10 * math.log10(error):.1f} dB" if error else f"{text} steps"


def panels(labels: list[tuple[str, str]], frames: list[Tensor]) -> Any:
    """One picture of frames ``(3, H, W)``, values 0..1, each under its label."""
    width = len(frames) * (SIDE + GAP) - GAP
    picture = Image.new("RGB", (width, SIDE + 2 * LINE + GAP), "white")
    draw = ImageDraw.Draw(picture)
    for index, (lines, frame) in enumerate(zip(labels, frames, strict=True)):
        x = index * (SIDE + GAP)
        for number, (line, ink) in enumerate(zip(lines, ("#263238", "#546e7a"), strict=True)):
            draw.text((x + 1, number * LINE + 1), line, fill=ink, font=ImageFont.load_default(12))
        pixels = (frame.clamp(0, 1) * 255).round().byte().permute(1, 2, 0).numpy()
        enlarged = Image.fromarray(pixels).resize((SIDE, SIDE), Image.Resampling.BICUBIC)
        picture.paste(enlarged, (x, 2 * LINE + GAP))
    return picture


def write(pictures: list[Any]) -> None:
    """An animated WebP in the best quality that keeps to the limit."""
    for quality in range(80, 10, -5):
        options = {"quality": quality, "method": 6, "minimize_size": True}
        pictures[0].save(TARGET, save_all=True, append_images=pictures[1:], duration=MILLISECONDS, loop=0, **options)
        if TARGET.stat().st_size <= SIZE_LIMIT:
            return
    raise SystemExit(f"{TARGET} is larger than {SIZE_LIMIT} bytes in any quality; show fewer panels or frames.")


if __name__ == "__main__":
    main()
