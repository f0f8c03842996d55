"""End-to-end seconds of the official ``WanT2V.generate`` with and without halfframe, and what the forwards allow.

    python benchmarks/wan_t2v.py --frames 49 --size 832 480 --steps 20 --output results

True A14B sizes on a GPU with 80 GB or more (57 GB of weights); ``--tiny`` runs the same on a CPU to try the script.
Weights are random (bf16 on a GPU), the text encoder is stood in for, and so is flash-attention, by PyTorch's SDPA: they
cost the same with and without halfframe, except the text encoder, which is left out of both. All variants run in one
process after a warm-up; each time is the median of ``--repeats`` runs.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import json
import platform
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch

import halfframe
from halfframe import frames
from halfframe.testing import A14B, WanSizes, tiny_wan_t2v

PROMPT = "a red ball rolls over stripes"


@dataclasses.dataclass
class Row:
    """One variant: its seconds, its ratio to the baseline, and the ratio that its forwards alone would allow."""

    name: str
    seconds: float
    speedup: float
    ideal_seconds: float
    ideal_speedup: float
    predicted_speedup: float | None
    peak_gpu_gib: float | None

    @property
    def share_of_ideal(self) -> float:
        return self.speedup / self.ideal_speedup


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--frames", type=int, default=49, help="video frames, 4n+1 (default: %(default)s)")
    parser.add_argument("--size", type=int, nargs=2, default=(832, 480), metavar=("WIDTH", "HEIGHT"))
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--shift", type=float, default=12.0)
    parser.add_argument("--solver", default="unipc", choices=("unipc", "dpm++"))
    parser.add_argument("--strategies", nargs="+", default=["self-duplicate"])
    parser.add_argument("--cfg", type=int, nargs=2, default=(5, 3), metavar=("LAST", "LAST_HIGH"))
    parser.add_argument("--repeats", type=int, default=1, help="timed runs of each variant; the median is shown")
    parser.add_argument("--output", type=Path, help="folder for wan_t2v.json and wan_t2v.md")
    parser.add_argument("--tiny", action="store_true", help="small random model, on whatever device there is")
    arguments = parser.parse_args()

    bench = Bench(arguments)
    bench.generate(2)  # warm up: kernels, caching allocator, cuDNN's choice of algorithms
    with halfframe.enabled(bench.pipe):
        bench.generate(2)

    full = bench.forward_seconds(bench.latent_frames)
    half = bench.forward_seconds(frames.kept_count(bench.latent_frames))
    last, last_high = arguments.cfg
    truncation = {"cfg_truncate_steps": last, "cfg_truncate_high_noise_steps": last_high}
    variants: list[tuple[str, str | None, dict[str, int]]] = []
    for strategy in arguments.strategies:
        variants += [(strategy, strategy, {}), (f"{strategy}, CFG truncated {last}/{last_high}", strategy, truncation)]
    variants.append((f"CFG truncated {last}/{last_high}", None, truncation))

    baseline, peak = bench.timed(bench.generate)
    rows: list[Row] = []
    high = low = 0
    rest = 0.0
    for name, strategy, options in variants:
        with halfframe.enabled(bench.pipe, strategy, **options) as run:
            seconds, variant_peak = bench.timed(bench.generate)
        report = run.report
        assert report is not None
        high, low = report.high.steps, report.low.steps
        rest = baseline - (report.high.forwards_full + report.low.forwards_full) * full
        # Each forward at the time that it takes alone; what is no forward (VAE, solver) as in the baseline.
        ideal = rest + report.high.forwards * (half if report.halved else full) + report.low.forwards * full
        predicted = report.predicted_speedup
        rows.append(Row(name, seconds, baseline / seconds, ideal, baseline / ideal, predicted, variant_peak))
        print(report, "\n", flush=True)
    for fewer in sorted({max(1, round(arguments.steps / row.speedup)) for row in rows}, reverse=True):
        seconds, fewer_peak = bench.timed(lambda fewer=fewer: bench.generate(fewer))  # type: ignore[misc]
        ideal = rest + 2 * fewer * full
        rows.append(
            Row(f"fewer steps: {fewer}", seconds, baseline / seconds, ideal, baseline / ideal, None, fewer_peak)
        )
    rows.insert(0, Row(f"baseline, {arguments.steps} steps", baseline, 1.0, baseline, 1.0, None, peak))

    facts = bench.facts() | {
        "command": " ".join(["python", *sys.argv]),
        "high_noise_steps": high,
        "low_noise_steps": low,
        "forward_seconds_all_frames": full,
        "forward_seconds_kept_frames": half,
    }
    text = markdown(facts, rows)
    print(text)
    if arguments.output:
        arguments.output.mkdir(parents=True, exist_ok=True)
        data = {**facts, "rows": [dataclasses.asdict(row) | {"share_of_ideal": row.share_of_ideal} for row in rows]}
        (arguments.output / "wan_t2v.json").write_text(json.dumps(data, indent=2) + "\n")
        (arguments.output / "wan_t2v.md").write_text(text + "\n")


class Bench:
    """The pipeline of one benchmark run, and ways to time it."""

    def __init__(self, arguments: argparse.Namespace) -> None:
        self.arguments = arguments
        self.device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        if self.device.type == "cpu" and not arguments.tiny:
            raise SystemExit("true A14B sizes need a CUDA GPU with 80 GB or more; try --tiny on this machine")
        sizes = WanSizes(dim=96, ffn_dim=256) if arguments.tiny else A14B
        dtype = torch.bfloat16 if self.device.type == "cuda" else torch.float32
        start = time.perf_counter()
        self.pipe = tiny_wan_t2v(sizes=sizes, device=self.device, param_dtype=dtype)
        print(f"built two experts and a VAE of random weights in {time.perf_counter() - start:.0f} s", flush=True)
        self.sizes = sizes
        self.dtype = dtype
        self.latent_frames = frames.latent_frame_count(arguments.frames)

    def generate(self, steps: int | None = None) -> None:
        arguments = self.arguments
        video = self.pipe.generate(
            PROMPT,
            size=tuple(arguments.size),
            frame_num=arguments.frames,
            sampling_steps=steps or arguments.steps,
            shift=arguments.shift,
            sample_solver=arguments.solver,
            guide_scale=(3.0, 4.0),
            seed=0,
            offload_model=False,
        )
        assert video.shape[1] == arguments.frames

    def timed(self, function: Callable[[], Any]) -> tuple[float, float | None]:
        """Median seconds of `function`, and the peak of GPU memory in GiB."""
        seconds = []
        if self.device.type == "cuda":
            torch.cuda.reset_peak_memory_stats()
        for _ in range(self.arguments.repeats):
            with self.synchronized():
                start = time.perf_counter()
                function()
                self.synchronize()
                seconds.append(time.perf_counter() - start)
        peak = torch.cuda.max_memory_allocated() / 2**30 if self.device.type == "cuda" else None
        return statistics.median(seconds), peak

    @contextlib.contextmanager
    def synchronized(self) -> Iterator[None]:
        self.synchronize()
        yield
        self.synchronize()

    def synchronize(self) -> None:
        if self.device.type == "cuda":
            torch.cuda.synchronize()

    def forward_seconds(self, latent_frames: int, repeats: int = 5) -> float:
        """Median seconds of one forward of an expert over `latent_frames` frames, as `generate` calls it."""
        width, height = self.arguments.size
        tokens = latent_frames * (height // 16) * (width // 16)
        latents = [torch.randn(16, latent_frames, height // 8, width // 8, device=self.device)]
        context = self.pipe.text_encoder([PROMPT], self.device)
        timestep = torch.tensor([900], device=self.device)
        seconds = []
        with torch.no_grad(), torch.amp.autocast("cuda", dtype=self.dtype):
            for i in range(repeats + 1):
                self.synchronize()
                start = time.perf_counter()
                self.pipe.high_noise_model(latents, t=timestep, context=context, seq_len=tokens)
                self.synchronize()
                if i:  # the first one warms up this shape
                    seconds.append(time.perf_counter() - start)
        return statistics.median(seconds)

    def facts(self) -> dict[str, Any]:
        width, height = self.arguments.size
        device = torch.cuda.get_device_name() if self.device.type == "cuda" else platform.processor() or "CPU"
        return {
            "device": device,
            "torch": torch.__version__,
            "halfframe": halfframe.__version__,
            "weights": "random",
            "dtype": str(self.dtype).removeprefix("torch."),
            "attention": "SDPA standing in for flash-attention",
            "sizes": "A14B" if self.sizes == A14B else str(self.sizes),
            "video": f"{self.arguments.frames} frames {width}x{height}",
            "steps": self.arguments.steps,
            "shift": self.arguments.shift,
            "solver": self.arguments.solver,
            "repeats": self.arguments.repeats,
        }


def markdown(facts: dict[str, Any], rows: list[Row]) -> str:
    lines = [f"- {key.replace('_', ' ')}: {value}" for key, value in facts.items()]
    lines += [
        "",
        "| variant | seconds | speed-up | forwards allow | share of that | predicted from FLOPs | peak GPU GiB |",
    ]
    lines.append("| --- | ---: | ---: | ---: | ---: | ---: | ---: |")
    for row in rows:
        predicted = f"{row.predicted_speedup:.2f}x" if row.predicted_speedup else ""
        peak = f"{row.peak_gpu_gib:.1f}" if row.peak_gpu_gib is not None else ""
        lines.append(
            f"| {row.name} | {row.seconds:.2f} | {row.speedup:.2f}x | {row.ideal_speedup:.2f}x | "
            f"{row.share_of_ideal:.1%} | {predicted} | {peak} |"
        )
    return "\n".join(lines)


if __name__ == "__main__":
    main()
