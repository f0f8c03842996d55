"""Is the FLOP model of `halfframe.cost` what a machine needs? Measured against predicted time of the high-noise phase.

    python benchmarks/flop_model.py

Runs the official ``WanT2V.generate`` (random weights, float32 on a CPU) with and without halfframe at 33 and at 81
video frames, times every forward, and prints the ratio of the high-noise phase's seconds beside the ratio of its FLOPs.
Both variants alternate, so that a machine that slows down slows both; each figure is the median over the repeats. The
experts are wide enough for arithmetic, not Python or memory, to take the time; the machine should be otherwise idle.
"""

from __future__ import annotations

import argparse
import platform
import statistics
import warnings
from typing import Any

import torch

import halfframe
from halfframe.testing import WanSizes, tiny_wan_t2v


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--frames", type=int, nargs="+", default=[33, 81], help="video frames, 4n+1")
    parser.add_argument("--size", type=int, nargs=2, default=(192, 128), metavar=("WIDTH", "HEIGHT"))
    parser.add_argument("--dim", type=int, default=768, help="width of the experts, a multiple of 24")
    parser.add_argument("--layers", type=int, default=2)
    parser.add_argument("--steps", type=int, default=4)
    parser.add_argument("--repeats", type=int, default=3)
    arguments = parser.parse_args()

    dim = arguments.dim
    sizes = WanSizes(dim=dim, ffn_dim=dim * 27 // 10, num_heads=dim // 96, num_layers=arguments.layers, vae_dim=2)
    pipe = tiny_wan_t2v(sizes=sizes)
    pipe.rank = 1  # only rank 0 decodes, and the VAE is not what is measured
    pipe.boundary = 0.0  # every step is a high-noise step: that phase is what is compared
    print(f"{platform.processor() or platform.machine()}, torch {torch.__version__}, {torch.get_num_threads()} threads")
    print(f"experts: {sizes.num_layers} layers of width {dim}, {arguments.steps} steps, float32, random weights\n")
    print("| video frames | tokens, kept / all | measured ratio | FLOP ratio | off by |")
    print("| ---: | ---: | ---: | ---: | ---: |")
    for frame_num in arguments.frames:
        full: list[float] = []
        half: list[float] = []
        for repeat in range(arguments.repeats + 1):
            reports = [high_phase(pipe, strategy, frame_num, arguments) for strategy in (None, "self-duplicate")]
            if repeat:  # the first pair warms up
                full.append(reports[0].seconds)
                half.append(reports[1].seconds)
        measured = statistics.median(half) / statistics.median(full)
        predicted = reports[1].tflops / reports[1].tflops_full
        tokens = f"{reports[1].sequence_lengths[0]} / {reports[0].sequence_lengths[0]}"
        print(
            f"| {frame_num} | {tokens} | {measured:.3f} | {predicted:.3f} | {measured / predicted - 1:+.1%} |",
            flush=True,
        )


def high_phase(pipe: Any, strategy: str | None, frame_num: int, arguments: argparse.Namespace) -> Any:
    """What the high-noise expert did in one run."""
    with warnings.catch_warnings(), halfframe.enabled(pipe, strategy, measure=True) as run:
        warnings.simplefilter("ignore")  # the plain runs say that nothing was halved
        pipe.generate(
            "a red ball",
            size=tuple(arguments.size),
            frame_num=frame_num,
            sampling_steps=arguments.steps,
            shift=12.0,
            seed=0,
            offload_model=False,
        )
    assert run.report is not None
    return run.report.high


if __name__ == "__main__":
    main()
