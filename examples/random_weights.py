"""Upstream's own ``WanT2V.generate`` with and without halfframe, on a CPU, with two small experts of random weights.

Random weights make random pictures: what this shows is the plumbing, the report and the time, not quality. "Fewer
steps" stands beside it, because it is the plain way to the same cost.
"""

from __future__ import annotations

import argparse
import statistics
import time
import warnings
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
    parser.add_argument("--strategy", default=halfframe.DEFAULT_STRATEGY, help="one of the installed strategies")
    parser.add_argument("--repeats", type=int, default=3, help="timed runs of each variant; the median is shown")
    parser.add_argument("--threads", type=int, default=1, help="CPU threads; more than idle cores is slower by far")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    warnings.filterwarnings("ignore", message=".*autocast")  # upstream asks for CUDA's throughout

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
    print(
        f"torch {torch.__version__}, {torch.get_num_threads()} CPU thread(s), float32, random weights; a minute or so\n"
    )
    generate(2)  # warm up
    with halfframe.enabled(pipe, arguments.strategy, measure=True) as run:
        generate()
    assert run.report is not None
    print(run.report, "\n")
    speedup = run.report.predicted_speedup or 1.0
    fewer = max(1, round(arguments.steps / speedup))

    def halved() -> None:
        with halfframe.enabled(pipe, arguments.strategy):
            generate()

    variants: dict[str, Callable[[], Any]] = {
        f"without halfframe, {arguments.steps} steps": generate,
        f"{arguments.strategy}, {arguments.steps} steps": halved,
        f"without halfframe, {fewer} steps (equal cost)": lambda: generate(fewer),
    }
    seconds: dict[str, list[float]] = {name: [] for name in variants}
    for _ in range(arguments.repeats):  # in turns, so that a busy machine is busy for all of them
        for name, function in variants.items():
            start = time.perf_counter()
            function()
            seconds[name].append(time.perf_counter() - start)
    medians = {name: statistics.median(times) for name, times in seconds.items()}
    baseline = next(iter(medians.values()))
    for name, median in medians.items():
        spread = (max(seconds[name]) - min(seconds[name])) / median
        print(f"{name:<45} {median:7.2f} s   {baseline / median:5.2f}x   (spread {spread:.0%})")


if __name__ == "__main__":
    main()
