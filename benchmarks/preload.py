"""Seconds of the official ``WanT2V.generate`` with ``offload_model=True``, with and without preload, on a GPU.

    python benchmarks/preload.py --frames 49 --size 832 480 --steps 20 --output results

True A14B sizes, random weights in bfloat16 (57 GB of host memory; overlapping needs both experts on the GPU), text
encoder and flash-attention stood in for. The variants take turns in one process after a warm-up, each in a block of
its own, so that page-locking counts; videos of the same strategy must be equal bit for bit, or the script fails.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import time
from pathlib import Path
from typing import Any

import torch

import halfframe
from halfframe.testing import A14B, WanSizes, tiny_wan_t2v

PROMPT = "a red ball rolls over stripes"
SMALL = WanSizes(dim=2048, ffn_dim=8192, num_heads=16, num_layers=8)
VARIANTS: dict[str, tuple[str | None, bool]] = {
    "upstream": (None, False),
    "preload": (None, True),
    "self-duplicate": ("self-duplicate", False),
    "self-duplicate, preload": ("self-duplicate", True),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--frames", type=int, default=49, help="video frames, 4n+1 (default: %(default)s)")
    parser.add_argument("--size", type=int, nargs=2, default=(832, 480), metavar=("WIDTH", "HEIGHT"))
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--shift", type=float, default=12.0)
    parser.add_argument("--repeats", type=int, default=3, help="timed runs of each variant; the median is shown")
    parser.add_argument("--small", action="store_true", help="smaller experts, to try the script")
    parser.add_argument("--output", type=Path, help="folder for preload.json and preload.md")
    arguments = parser.parse_args()
    if not torch.cuda.is_available():
        raise SystemExit("preload is about a GPU's memory, and there is no CUDA GPU here")

    device = torch.device("cuda", torch.cuda.current_device())
    sizes = SMALL if arguments.small else A14B
    pipe = tiny_wan_t2v(sizes=sizes, device=device, param_dtype=torch.bfloat16, init_on_cpu=True)

    def generate(steps: int = arguments.steps) -> Any:
        return pipe.generate(
            PROMPT,
            size=tuple(arguments.size),
            frame_num=arguments.frames,
            sampling_steps=steps,
            shift=arguments.shift,
            seed=0,
            offload_model=True,
        )

    generate(2)  # warms up, and leaves the experts on the host
    rows: dict[str, dict[str, Any]] = {name: {"seconds": [], "peak": 0, "preload": set()} for name in VARIANTS}
    videos: dict[str | None, Any] = {}
    for _ in range(arguments.repeats):
        for name, (strategy, preload) in VARIANTS.items():
            torch.cuda.empty_cache()
            torch.cuda.reset_peak_memory_stats()
            start = time.perf_counter()
            if strategy is None and not preload:
                video = generate()
            else:
                with halfframe.enabled(pipe, strategy, preload=preload) as run:
                    video = generate()
                rows[name]["preload"].add(run.reports[-1].preload or "")
            torch.cuda.synchronize()
            rows[name]["seconds"].append(time.perf_counter() - start)
            rows[name]["peak"] = max(rows[name]["peak"], torch.cuda.max_memory_reserved())
            if not torch.equal(videos.setdefault(strategy, video), video):
                raise SystemExit(f"the video of {name!r} is another one")

    facts = {
        "command": " ".join(["python", *sys.argv]),
        "device": torch.cuda.get_device_name(),
        "torch": torch.__version__,
        "halfframe": halfframe.__version__,
        "experts": "A14B, random" if sizes == A14B else str(sizes),
        "video": f"{arguments.frames} frames {arguments.size[0]}x{arguments.size[1]}, {arguments.steps} steps",
    }
    lines = [f"- {key}: {value}" for key, value in facts.items()]
    lines += ["", "| variant | seconds | peak GPU GiB reserved | preload |", "| --- | ---: | ---: | --- |"]
    for name, row in rows.items():
        seconds = statistics.median(row["seconds"])
        lines.append(f"| {name} | {seconds:.2f} | {row['peak'] / 2**30:.1f} | {'; '.join(sorted(row['preload']))} |")
    text = "\n".join(lines)
    print(text)
    if arguments.output:
        arguments.output.mkdir(parents=True, exist_ok=True)
        data = {**facts, "rows": {name: {**row, "preload": sorted(row["preload"])} for name, row in rows.items()}}
        (arguments.output / "preload.json").write_text(json.dumps(data, indent=2) + "\n")
        (arguments.output / "preload.md").write_text(text + "\n")


if __name__ == "__main__":
    main()
