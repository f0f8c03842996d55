"""The benchmark: seconds and memory of whole videos with and without halfframe, and what the forward passes allow.

    python benchmarks/suite.py --clips 49x832x480 81x832x480 81x1280x720 --steps 20 --output results
    python benchmarks/suite.py --clips 81x1280x720 --budget-seconds 540 --output results
    torchrun --nproc_per_node=2 benchmarks/suite.py --clips 49x832x480 --output results-2

True A14B sizes with random weights in bfloat16 on GPUs of 80 GB or more (57 GB of weights), all variants in one process
after a warm-up; ``--tiny`` runs small ones on whatever there is, to try the command. Text encoder and flash-attention
are stood in for, in all variants alike. Each host and clip is a session of `halfframe.compare` with timed parts and
without quality, and has a folder: report.html, and comparison.json and .md, which are whole after every run;
``--resume`` goes on from them.

With ``--budget-seconds``, or ``--run-steps``, fewer steps are run than ``--steps`` says, split between the experts as
nearly alike as there is, and what is shown for ``--steps`` is extrapolated and says so. Beside every comparison stands
a plain run with fewer steps at equal cost.

A variant is ``STRATEGY[:option=value,...][+cfg]`` or ``cfg``: truncated guidance (``--cfg``).
"""

from __future__ import annotations

import argparse
import contextlib
import gc
import importlib.metadata
import os
import sys
import time
import warnings
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any
from unittest import mock

os.environ.setdefault("TQDM_DISABLE", "1")  # read when tqdm is imported; its bars would bury the lines that count

import torch

from _parallel import Group, check_heads, end_process, parallelise, process_group
from halfframe import Guidance
from halfframe.compare import Budget, Generate, Session, Variant, diffusers_generate, markdown, official_generate
from halfframe.compare.progress import Teller
from halfframe.errors import HalfframeError, HalfframeWarning, OptionError
from halfframe.plugins.configuration import configure
from halfframe.report.cost import A14B as SHAPE
from halfframe.report.cost import H200
from halfframe.testing import A14B, TINY, tiny_diffusers_t2v, tiny_wan_t2v

__all__ = ["Latents", "main", "parse"]

_RESIDENT = (
    "self-duplicate",
    "interleave",
    "interleave:stride=4",
    "self-duplicate+cfg",
    "interleave+cfg",
    "interleave:stride=4+cfg",
    "cfg",
)
"""What is compared where both experts stay on the GPU."""
_OFFLOAD = ("self-duplicate", "self-duplicate+cfg")
"""What is compared where upstream moves its experts."""

Clip = tuple[int, int, int]
"""Video frames, width and height."""


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; returns the exit status: 0, or 1 if a variant or a check failed, 130 if interrupted."""
    start = time.monotonic()
    # Upstream asks for CUDA's autocast at every block; reports say what was not halved.
    for category in (UserWarning, FutureWarning):
        warnings.filterwarnings("ignore", message=".*autocast", category=category)
    warnings.filterwarnings("ignore", category=HalfframeWarning)
    arguments = _parser().parse_args(argv)
    with process_group() as group:
        try:
            return _suite(arguments, group, start)
        except HalfframeError as error:
            print(f"suite: error: {error}", file=sys.stderr)
            return 1
        except KeyboardInterrupt:
            group.say("suite: interrupted; --resume goes on from what is finished")
            return 130


def _suite(arguments: argparse.Namespace, group: Group, start: float) -> int:
    _check(arguments, group)
    names = dict.fromkeys(arguments.variants or (_OFFLOAD if arguments.offload else _RESIDENT))
    variants = [parse(name, arguments.cfg) for name in names if name != "baseline"]
    latents = Latents(arguments, group)
    end = None if arguments.budget_seconds is None else start + arguments.budget_seconds
    ahead = sum(map(_weight, arguments.clips)) * len(arguments.hosts)
    wrong: list[str] = []
    for name in arguments.hosts:
        pipe = _pipe(name, arguments, group)
        for clip in arguments.clips:
            title = f"{name}-{'x'.join(map(str, clip))}{'-offload' if arguments.offload else ''}"
            share = None if end is None else (end - time.monotonic()) * _weight(clip) / ahead
            ahead -= _weight(clip)
            told = Teller(title)
            group.say(title)
            session = Session(
                _host(pipe, name, clip, arguments, group),
                [Variant("baseline"), *variants],
                [("a red ball rolls over stripes", 0)],
                steps=arguments.steps,
                quality=False,
                spots=True,
                budget=Budget(share, end, arguments.run_steps),
                repeat=arguments.repeats,
                output=arguments.output / title if arguments.output and group.rank == 0 else None,
                resume=arguments.resume,
                progress=told if group.rank == 0 else _not_told,
                facts={"weights": "random", "steps": arguments.steps, "command": " ".join(["python", *sys.argv])},
                check=lambda key, found, title=title: latents.take(f"{title} {key}", found),
            )
            # Upstream's offloading synchronises CUDA, whether it is there or not.
            on_cpu = mock.patch("torch.cuda.synchronize") if group.device.type == "cpu" else contextlib.nullcontext()
            with on_cpu, told:
                comparison = session.run()
            group.say(f"\n{markdown(comparison)}")
            wrong += [f"{title} {results.variant.name}: {results.error}" for results in comparison.failures]
            wrong += comparison.lost
        del pipe
        gc.collect()
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
    for line in (wrong := wrong + latents.failures()):
        group.say(f"FAILED: {line}")
    return 1 if any(group.gather(bool(wrong))) else 0


def _not_told(line: str) -> None:
    """Progress in all processes but the first."""


def parse(text: str, truncation: Sequence[int]) -> Variant:
    """A variant from ``STRATEGY[:option=value,...][+cfg]``, or ``cfg`` alone.

    Args:
        text: as the command line and the tables have it.
        truncation: of guidance, for ``cfg``: so many last steps, and so many last high-noise steps.

    Raises:
        HalfframeError: it is none, the strategy is unknown, or takes no such option.
    """
    head, *extras = text.split("+")
    named = bool(head)
    if head == "cfg":
        head, extras = "", [head, *extras]
    if not named or extras not in ([], ["cfg"]):
        raise OptionError(f"{text!r} is no variant; give STRATEGY[:option=value,...][+cfg], or cfg.")
    options: dict[str, Any] = {"strategy": head or "none"}
    if "cfg" in extras:
        options["guidance"] = Guidance(skip_last=truncation[0], skip_last_high=truncation[1])
    configure(**options)  # here and not after minutes of building and warming up
    return Variant(text, options)


class Latents:
    """Latents that are kept for another benchmark to check against, and those of another that these are checked with.

    Only the first process has them; `arguments` say where they are, and how far they may be apart.
    """

    def __init__(self, arguments: argparse.Namespace, group: Group) -> None:
        first = group.rank == 0
        self._save: Path | None = arguments.save_latents if first else None
        self._against: Path | None = arguments.check_against if first else None
        self._tolerance: float = arguments.tolerance
        known = arguments.resume and self._save is not None and self._save.exists()
        self._mine: dict[str, torch.Tensor] = torch.load(self._save, weights_only=True) if known else {}
        self._others = None if self._against is None else torch.load(self._against, weights_only=True)
        self._checked: dict[str, float] = {}

    def take(self, key: str, latents: torch.Tensor) -> float | None:
        """File `latents` under `key`; their relative distance from the other benchmark's, if it has any."""
        if self._save is not None:
            self._mine[key] = latents
            self._save.parent.mkdir(parents=True, exist_ok=True)
            torch.save(self._mine, self._save)
        if self._others is None or key not in self._others:
            return None
        other = self._others[key].double()
        self._checked[key] = float((latents.double() - other).norm() / other.norm())
        return self._checked[key]

    def failures(self) -> list[str]:
        """What was too far off, or that there was nothing to check; a NaN is too far off."""
        if self._others is not None and not self._checked:
            return [f"{self._against} has nothing of what was run: same clips, variants, steps?"]
        return [
            f"{key}: latents are off by {off_by:.2e}, more than {self._tolerance:g}"
            for key, off_by in self._checked.items()
            if not off_by <= self._tolerance
        ]


def _pipe(name: str, arguments: argparse.Namespace, group: Group) -> Any:
    """A pipeline of random weights: of true sizes in bfloat16 on a GPU, or of small ones."""
    sizes, dtype = TINY if arguments.tiny else A14B, torch.bfloat16 if group.device.type == "cuda" else torch.float32
    begun = time.perf_counter()
    if name == "wan":
        pipe = tiny_wan_t2v(sizes=sizes, device=group.device, param_dtype=dtype)
        if group.size > 1:
            check_heads(sizes.num_heads, group.size)
            parallelise(pipe, group, arguments.fsdp)
    else:
        pipe = tiny_diffusers_t2v(sizes=sizes, device=group.device, dtype=dtype)
        pipe.scheduler = type(pipe.scheduler).from_config(pipe.scheduler.config, flow_shift=arguments.shift)
    group.say(f"{name}: built two experts and a VAE in {time.perf_counter() - begun:.0f} s")
    return pipe


def _host(pipe: Any, name: str, clip: Clip, arguments: argparse.Namespace, group: Group) -> Generate:
    video_frames, *size = clip
    if name == "wan":
        host = official_generate(
            pipe,
            size=(size[0], size[1]),
            frame_num=video_frames,
            shift=arguments.shift,
            sample_solver=arguments.solver,
            guide_scale=(3.0, 4.0),
            offload_model=arguments.offload,
        )
    else:
        text = (TINY if arguments.tiny else A14B).text_len
        given: dict[str, Any] = {"guidance_scale": 4.0, "guidance_scale_2": 3.0, "max_sequence_length": text}
        host = diffusers_generate(pipe, size=(size[0], size[1]), num_frames=video_frames, **given)
    package = {"wan": "wan22"}.get(name, name)
    facts = {
        "sizes": "tiny" if arguments.tiny else "A14B",
        "attention": {"wan": "SDPA standing in for flash-attention"}.get(name, "its own choice"),
        "processes": group.size,
        "parallelism": "none" if group.size == 1 else "Ulysses and FSDP" if arguments.fsdp else "Ulysses",
    }
    with contextlib.suppress(importlib.metadata.PackageNotFoundError):
        facts[f"{package} version"] = importlib.metadata.version(package)
    return replace(host, facts={**host.facts, **facts}, gather=group.gather)


def _check(arguments: argparse.Namespace, group: Group) -> None:
    several, offload = group.size > 1, arguments.offload
    if group.device.type == "cpu" and not arguments.tiny:
        raise OptionError("true A14B sizes need a CUDA GPU with 80 GB or more; try --tiny on this machine.")
    if arguments.steps < 1 or arguments.repeats < 1 or not 0 < (arguments.run_steps or 1) <= arguments.steps:
        raise OptionError("--steps and --repeats are 1 or more, --run-steps no more than --steps.")
    if set(arguments.hosts) - {"wan"} and (offload or several or arguments.solver != "unipc"):
        raise OptionError("--offload, --solver and several processes are for --hosts wan alone.")
    if offload and several:
        raise OptionError("--offload is for one process: upstream does not offload what several share.")
    if arguments.fsdp and not several:
        raise OptionError("--fsdp shards among several processes; start them with torchrun.")


def _weight(clip: Clip) -> float:
    """A clip's share of a budget."""
    video_frames, width, height = clip
    return SHAPE.seconds(((video_frames - 1) // 4 + 1) * (height // 16) * (width // 16), H200)


def _clip(text: str) -> Clip:
    video_frames, width, height = map(int, text.lower().split("x"))  # argparse says what is wrong with others
    return video_frames, width, height


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--clips", type=_clip, nargs="+", default=[(49, 832, 480)], metavar="FxWxH")
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--shift", type=float, default=12.0)
    parser.add_argument("--solver", default="unipc", choices=("unipc", "dpm++"))
    parser.add_argument("--hosts", nargs="+", default=["wan"], choices=("wan", "diffusers"), help="one after the other")
    parser.add_argument("--variants", nargs="+", help=f"beside the baseline (default: {' '.join(_RESIDENT)})")
    parser.add_argument("--cfg", type=int, nargs=2, default=(5, 3), metavar=("LAST", "LAST_HIGH"))
    parser.add_argument("--repeats", type=int, default=1, help="runs of each variant, in turns; the median is shown")
    parser.add_argument("--budget-seconds", type=float, help="for the whole command, imports apart")
    parser.add_argument("--run-steps", type=int, help="steps to run, whatever there is time for")
    parser.add_argument("--offload", action="store_true", help="time generate(offload_model=True), not the first video")
    parser.add_argument("--fsdp", action="store_true", help="shard the experts among the processes of torchrun")
    parser.add_argument("--save-latents", type=Path, metavar="FILE", help="for --check-against in another command")
    parser.add_argument("--check-against", type=Path, metavar="FILE", help="fail if latents are not those in FILE")
    parser.add_argument("--tolerance", type=float, default=0.05, help="of that check: largest relative distance")
    parser.add_argument("--output", type=Path, help="folder in which each host and clip gets one")
    parser.add_argument("--resume", action="store_true", help="go on from what is in there")
    parser.add_argument("--tiny", action="store_true", help="small experts, on whatever device there is")
    return parser


if __name__ == "__main__":
    end_process(main())
