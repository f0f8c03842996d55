"""Upstream's own ``WanT2V.generate`` with and without halfframe, on a CPU, with two small experts of random weights.

Random weights make random pictures: what this shows is the plumbing, the report and the time, not quality. "Fewer
steps" stands beside it, because it is the plain way to the same cost.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable
from typing import Any

import torch

import halfframe
from halfframe.testing import WanSizes, tiny_wan_t2v

PROMPT = "a red ball rolls over stripes"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--frames", type=int, default=49, help="video frames, 4n+1 (default: %(default)s)")
    parser.add_argument("--size", type=int, nargs=2, default=(160, 96), metavar=("WIDTH", "HEIGHT"))
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--strategy", default="self-duplicate", help="one of the installed strategies")
    parser.add_argument("--repeats", type=int, default=2, help="timed runs of each variant; the median is shown")
    arguments = parser.parse_args()

    pipe = tiny_wan_t2v(sizes=WanSizes(dim=288, ffn_dim=768, num_heads=6, num_layers=6, vae_dim=2))

    def generate(steps: int = arguments.steps) -> torch.Tensor:
        video: torch.Tensor = pipe.generate(
            PROMPT,
            size=tuple(arguments.size),
            frame_num=arguments.frames,
            sampling_steps=steps,
            shift=12.0,
            guide_scale=(3.0, 4.0),
            seed=0,
            offload_model=False,
        )
        return video

    print("installed strategies:", ", ".join(info.name for info in halfframe.strategies()))
    print(f"torch {torch.__version__}, {torch.get_num_threads()} CPU threads, float32, random weights\n")
    generate(2)  # warm up

    with halfframe.enabled(pipe, arguments.strategy, measure=True) as run:
        half_seconds = timed(generate, arguments.repeats)
    assert run.report is not None
    print(run.report, "\n")
    full_seconds = timed(generate, arguments.repeats)

    speedup = run.report.predicted_speedup or 1.0
    fewer = max(1, round(arguments.steps / speedup))
    fewer_seconds = timed(lambda: generate(fewer), arguments.repeats)

    rows = [
        (f"without halfframe, {arguments.steps} steps", full_seconds),
        (f"{arguments.strategy}, {arguments.steps} steps", half_seconds),
        (f"without halfframe, {fewer} steps", fewer_seconds),
    ]
    for name, seconds in rows:
        print(f"{name:<40} {seconds:7.2f} s   {full_seconds / seconds:5.2f}x")


def timed(function: Callable[[], Any], repeats: int) -> float:
    """Median wall seconds of `repeats` calls."""
    seconds = []
    for _ in range(repeats):
        start = time.perf_counter()
        function()
        seconds.append(time.perf_counter() - start)
    return statistics.median(seconds)


if __name__ == "__main__":
    main()
