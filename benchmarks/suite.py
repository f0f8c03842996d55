"""The benchmark: seconds and memory of whole videos with and without halfframe, and what the forwards alone allow.

    python benchmarks/suite.py --clips 49x832x480 81x832x480 81x1280x720 --steps 20 --output results
    python benchmarks/suite.py --clips 81x1280x720 --budget-seconds 540 --output results
    torchrun --nproc_per_node=2 benchmarks/suite.py --clips 49x832x480 --output results-2

True A14B sizes with random weights in bfloat16 on GPUs of 80 GB or more (57 GB of weights), all variants in one process
after a warm-up; ``--tiny`` runs small ones on whatever there is, to try the command. Text encoder and flash-attention
are stood in for, in all variants alike. What is written, suite.json and suite.md, is whole after every run, and
``--resume`` goes on from it.

With ``--budget-seconds``, or ``--run-steps``, fewer steps are run than ``--steps`` says, split between the experts as
nearly alike as there is, and what is shown for ``--steps`` is extrapolated and says so. Beside every comparison stands
a plain run with fewer steps at equal cost.

A variant is ``STRATEGY[:option=value,...][+cfg][+prefetch]``, ``cfg`` or ``prefetch``: truncated guidance (``--cfg``),
and experts brought in ahead of their turn, which goes with ``--offload`` only.
"""

from __future__ import annotations

import argparse
import dataclasses
import gc
import os
import platform
import sys
import time
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

os.environ.setdefault("TQDM_DISABLE", "1")  # read when tqdm is imported; its bars would bury the lines that count

import torch

import halfframe
from _output import comparison, markdown
from _parallel import Group, check_heads, end_process, process_group
from _pipelines import HOSTS, Host, Settings, host_facts
from _results import Results, Section
from _session import Latents, Session
from _variants import OFFLOAD, RESIDENT, Clip, parse
from halfframe.compare import Variant
from halfframe.errors import HalfframeError, HalfframeWarning
from halfframe.report.cost import A14B, H200

__all__ = ["main"]


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; returns the exit status: 0, or 1 if a variant or a check failed."""
    start = time.monotonic()
    # Upstream asks for CUDA's autocast at every block; reports say what was not halved.
    for category in (UserWarning, FutureWarning):
        warnings.filterwarnings("ignore", message=".*autocast", category=category)
    warnings.filterwarnings("ignore", category=HalfframeWarning)
    arguments = _parser().parse_args(argv)
    with process_group() as group:
        try:
            return _Suite(arguments, group, start).run()
        except (ValueError, HalfframeError) as error:
            if group.first:
                print(f"suite: error: {error}", file=sys.stderr)
            return 1


class _Suite:
    """All that one command does."""

    def __init__(self, arguments: argparse.Namespace, group: Group, start: float) -> None:
        self._arguments = arguments
        self._group = group
        self._end = None if arguments.budget_seconds is None else start + arguments.budget_seconds
        self._settings = self._checked()
        self._variants = self._chosen_variants()
        self._latents = Latents(
            arguments.save_latents if group.first else None,
            arguments.check_against if group.first else None,
            arguments.tolerance,
            arguments.resume,
        )
        path = arguments.output / "suite.json" if arguments.output else None
        self._results = Results(path, self._facts(), " ".join(["python", *sys.argv]))

    def run(self) -> int:
        arguments, group, results = self._arguments, self._group, self._results
        trouble = ""
        try:
            if group.first:  # torchrun's processes may not share a disk: what the first one finds goes for all
                results.load(arguments.resume)
        except ValueError as error:
            trouble = str(error)
        if trouble := group.agree(trouble):
            raise ValueError(trouble)
        results.sections = group.agree(results.sections)
        left: list[str] = []
        for number, name in enumerate(arguments.hosts):
            begun = time.perf_counter()
            host = HOSTS[name](self._settings, group)
            group.say(f"{name}: built two experts and a VAE in {time.perf_counter() - begun:.0f} s")
            for clip_number, clip in enumerate(arguments.clips):
                ahead = [*arguments.clips[clip_number:], *arguments.clips * (len(arguments.hosts) - number - 1)]
                left += self._clip(host, clip, ahead)
            del host
            gc.collect()
            if torch.cuda.is_available():
                torch.cuda.empty_cache()
        self._write()
        group.say("\n" + markdown(results))
        verdict = group.agree(self._verdict(left))
        group.meet()
        return verdict

    def _clip(self, host: Host, clip: Clip, ahead: Sequence[Clip]) -> list[str]:
        """One clip's part; returns what there was no time for."""
        arguments, group = self._arguments, self._group
        section = self._results.section(self._section(host, clip))
        session = Session(host, group, section, self._variants, arguments.repeats, self._latents, self._write)
        title = f"{host.name} {clip}{' offload' if section.offload else ''}"
        if session.pending() is None:
            group.say(f"{title}: nothing is left to do")
            return []
        group.say(f"{title}, {section.steps} steps")
        began = time.monotonic()
        remaining = None if self._end is None else self._end - began
        session.prepare()
        if remaining is not None:
            share = _weight(clip) / sum(map(_weight, ahead))
            remaining = remaining * share - (time.monotonic() - began)
        session.decide(arguments.run_steps, remaining)
        left = session.run(self._end)
        return [f"{title} {name}" for name in left]

    def _section(self, host: Host, clip: Clip) -> Section:
        arguments = self._arguments
        return Section(
            host=host.name,
            clip=str(clip),
            offload=arguments.offload,
            steps=arguments.steps,
            shift=arguments.shift,
            solver=arguments.solver,
            truncation=(arguments.cfg[0], arguments.cfg[1]),
        )

    def _verdict(self, left: list[str]) -> int:
        group, latents = self._group, self._latents
        failed = [
            f"{section.host} {section.clip} {name}: {trials.error}"
            for section in self._results.sections
            for name, trials in section.trials.items()
            if trials.error
        ]
        failed += latents.failures
        if latents.missed:
            failed.append(f"{self._arguments.check_against} has nothing of what was run: same clips, variants, steps?")
        if left:
            group.say("no time was left for (go on with --resume): " + ", ".join(left))
        if latents.checked:
            group.say(f"{latents.checked} clips checked against {self._arguments.check_against}")
        for line in failed:
            group.say(f"FAILED: {line}")
        return 1 if failed else 0

    def _write(self) -> None:
        if self._group.first:
            figures = [[dataclasses.asdict(line) for line in comparison(s)] for s in self._results.sections]
            self._results.write({"figures": figures}, markdown(self._results))

    def _checked(self) -> Settings:
        arguments, group = self._arguments, self._group
        if group.device.type == "cpu" and not arguments.tiny:
            raise ValueError("true A14B sizes need a CUDA GPU with 80 GB or more; try --tiny on this machine")
        if arguments.steps < 1 or arguments.repeats < 1 or not 0 <= (arguments.run_steps or 1) <= arguments.steps:
            raise ValueError("--steps and --repeats are 1 or more, --run-steps no more than --steps")
        settings = Settings.on(
            group.device,
            arguments.tiny,
            shift=arguments.shift,
            solver=arguments.solver,
            offload=arguments.offload,
            fsdp=arguments.fsdp,
        )
        others = set(arguments.hosts) - {"wan"}
        if others and (arguments.offload or group.size > 1 or arguments.solver != "unipc"):
            raise ValueError("--offload, --solver and several processes are for --hosts wan alone")
        if arguments.offload and group.size > 1:
            raise ValueError("--offload is for one process: upstream does not offload what several share")
        if arguments.fsdp and group.size == 1:
            raise ValueError("--fsdp shards among several processes; start them with torchrun")
        if group.size > 1:
            check_heads(settings.sizes.num_heads, group.size)
        return settings

    def _chosen_variants(self) -> list[Variant]:
        arguments = self._arguments
        usual = OFFLOAD if arguments.offload else RESIDENT
        names = dict.fromkeys(arguments.variants or usual)
        variants = [parse(name, tuple(arguments.cfg)) for name in names if name != "baseline"]
        if any("prefetch" in (variant.options or {}) for variant in variants) and not arguments.offload:
            raise ValueError("prefetched experts go with --offload: otherwise no expert is moved")
        return variants

    def _facts(self) -> dict[str, Any]:
        device, size = self._group.device, self._group.size
        cuda = device.type == "cuda"
        hosts = [host_facts(name) for name in self._arguments.hosts]
        return {
            "device": torch.cuda.get_device_name(device) if cuda else platform.processor() or platform.machine(),
            "processes": size,
            "parallelism": "none" if size == 1 else "Ulysses and FSDP" if self._settings.fsdp else "Ulysses",
            "python": platform.python_version(),
            "torch": torch.__version__,
            "halfframe": halfframe.__version__,
            "weights": "random",
            "dtype": str(self._settings.dtype).removeprefix("torch."),
            "sizes": "tiny" if self._arguments.tiny else "A14B",
            **{name: fact for facts in hosts for name, fact in facts.items()},
        }


def _weight(clip: Clip) -> float:
    """A clip's share of a budget."""
    return A14B.seconds(clip.latent_frames * clip.tokens_per_frame, H200)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--clips", type=Clip.parse, nargs="+", default=[Clip(49, 832, 480)], metavar="FxWxH")
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--shift", type=float, default=12.0)
    parser.add_argument("--solver", default="unipc", choices=("unipc", "dpm++"))
    parser.add_argument("--hosts", nargs="+", default=["wan"], choices=sorted(HOSTS), help="one after the other")
    parser.add_argument("--variants", nargs="+", help=f"beside the baseline (default: {' '.join(RESIDENT)})")
    parser.add_argument("--cfg", type=int, nargs=2, default=(5, 3), metavar=("LAST", "LAST_HIGH"))
    parser.add_argument("--repeats", type=int, default=1, help="runs of each variant, in turns; the median is shown")
    parser.add_argument("--budget-seconds", type=float, help="for the whole command, imports apart")
    parser.add_argument("--run-steps", type=int, help="steps to run, whatever there is time for")
    parser.add_argument("--offload", action="store_true", help="time generate(offload_model=True), not the first video")
    parser.add_argument("--fsdp", action="store_true", help="shard the experts among the processes of torchrun")
    parser.add_argument("--save-latents", type=Path, metavar="FILE", help="for --check-against in another command")
    parser.add_argument("--check-against", type=Path, metavar="FILE", help="fail if latents are not those in FILE")
    parser.add_argument("--tolerance", type=float, default=0.05, help="of that check: largest relative distance")
    parser.add_argument("--output", type=Path, help="folder for suite.json and suite.md")
    parser.add_argument("--resume", action="store_true", help="go on from the suite.json that is there")
    parser.add_argument("--tiny", action="store_true", help="small experts, on whatever device there is")
    return parser


if __name__ == "__main__":
    end_process(main())
