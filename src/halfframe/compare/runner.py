"""`compare`: every variant on the same prompts and seeds, timed, measured, and written down as it comes."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

import halfframe
from halfframe.compare.extras import require
from halfframe.compare.generators import Generate, check_seeds
from halfframe.compare.results import Comparison, Variant
from halfframe.compare.session import Session
from halfframe.errors import HalfframeError, OptionError, is_count

__all__ = ["WEIGHTS", "compare"]

WEIGHTS = {True: "random, so the pictures are noise and say nothing of quality", False: "trained", None: "not stated"}

_logger = logging.getLogger(__name__)


def compare(
    generate: Callable[[str, int, int], Any],
    variants: Iterable[Variant],
    *,
    prompts: Sequence[str],
    seeds: Sequence[int] = (0,),
    steps: int,
    pipe: Any = None,
    baseline: Variant | None = None,
    equal_cost: bool = True,
    warm_up_steps: int = 2,
    repeat: int = 1,
    temporal_stride: int = 4,
    output: str | Path | None = None,
    resume: bool = False,
    progress: Callable[[str], None] | None = None,
    random_weights: bool | None = None,
    facts: Mapping[str, Any] | None = None,
) -> Comparison:
    """Make the same clips by a baseline and by each variant, and say what each costs and how far it is off.

    Args:
        generate: ``(prompt, seed, steps) -> video`` in any form that `as_video` takes; see `official_generate` and
            `diffusers_generate`. The same arguments must give the same clip.
        variants: what to compare. One that raises is reported with its error, and the others go on.
        prompts: one or more.
        seeds: one or more; each prompt is made with each seed.
        steps: steps of the baseline and of every variant that names none of its own.
        pipe: the pipeline that `generate` uses, for variants with halfframe's options; by default ``generate.pipe``.
        baseline: what the others are measured against; by default, the pipeline as it is.
        equal_cost: adds for each variant with halfframe's options, after its first clip, the plain pipeline with as
            many steps as take the experts the same time, see `halfframe.compare.equal_cost`.
        warm_up_steps: steps of an untimed clip before the timed ones, for each variant; 0 for none.
        repeat: timed runs of each clip, the variants in turns, so that a machine that is busy for a while is so for
            all of them; medians and their spread are shown.
        temporal_stride: video frames per latent frame.
        output: folder for tables, pictures and clips, written as they come; None for none.
        resume: go on from what the same comparison, interrupted, left in `output`, if it left anything.
        progress: is told, a line at a time, what goes on; by default the log is, at level INFO.
        random_weights: for the heading of the tables; None if it is not known.
        facts: more for that heading.

    Raises:
        ComparisonError: the baseline failed; ``error.comparison`` has what was finished.
        OptionError: nothing to do, two variants of one name, options that `halfframe.enabled` refuses, or an earlier
            comparison of other settings.
        UnsupportedPipelineError: `pipe` cannot be served.
        HalfframeError: a package of the extra ``compare`` is missing.
    """
    rows = [Variant("baseline") if baseline is None else baseline, *variants]
    host = _host(generate, pipe)
    _check(rows, prompts, seeds, steps, warm_up_steps)
    if not is_count(repeat, 1):
        raise OptionError(f"repeat={repeat!r}; needed: an integer, 1 or more.")
    if resume and output is None:
        raise OptionError("there is nothing to resume without output; name the folder of the earlier comparison.")
    for variant in rows:
        _check_options(variant, host.pipe)
    require("skimage.metrics", "compute SSIM")
    heading = {
        "weights": WEIGHTS[random_weights],
        "steps": steps,
        "prompts": list(prompts),
        "seeds": list(seeds),
        "warm-up": f"{warm_up_steps} steps per variant, untimed" if warm_up_steps else "none",
        **({"repeat": f"{repeat} runs of each clip, in turns"} if repeat > 1 else {}),
        **(facts or {}),
    }
    session = Session(
        host,
        rows,
        [(prompt, seed) for prompt in prompts for seed in seeds],
        steps=steps,
        equal_cost=equal_cost,
        warm_up_steps=warm_up_steps,
        repeat=repeat,
        temporal_stride=temporal_stride,
        output=output,
        resume=resume,
        progress=progress or _logger.info,
        facts=heading,
    )
    return session.run()


def _host(generate: Callable[[str, int, int], Any], pipe: Any) -> Generate:
    """`generate` as a host, with what it names of its own."""
    if isinstance(generate, Generate):
        return generate if pipe is None else replace(generate, pipe=pipe)
    device = getattr(generate, "device", None) or torch.device("cuda" if torch.cuda.is_available() else "cpu")
    pipe = getattr(generate, "pipe", None) if pipe is None else pipe
    return Generate(pipe, generate, torch.device(device), getattr(generate, "facts", {}))


def _check(
    rows: Sequence[Variant],
    prompts: Sequence[str],
    seeds: Sequence[int],
    steps: int,
    warm_up_steps: int,
) -> None:
    if len(rows) < 2:
        raise OptionError("there is nothing to compare the baseline with; give one variant or more.")
    names = [variant.name for variant in rows]
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise OptionError(f"several variants are called {', '.join(map(repr, twice))}; give each a name of its own.")
    if isinstance(prompts, str) or not prompts or isinstance(seeds, int) or not seeds:
        raise OptionError(f"prompts={prompts!r}, seeds={seeds!r}; needed: lists of one prompt and one seed or more.")
    for name, kind in (("prompts", prompts), ("seeds", seeds)):
        if len(set(kind)) < len(kind):
            raise OptionError(f"{name} {list(kind)} has an entry twice, which gives the same clip; leave one out.")
    check_seeds(seeds)
    if steps < 1 or warm_up_steps < 0:
        raise OptionError(f"steps={steps}, warm_up_steps={warm_up_steps}; needed: 1 or more, and 0 or more.")


def _check_options(variant: Variant, pipe: Any) -> None:
    """Enable and leave at once: a misspelt option shows now, and not after the baseline's hour."""
    if variant.options is None:
        return
    if pipe is None:
        raise OptionError(
            f"variant {variant.name!r} has options for halfframe, but there is no pipeline to enable; pass `pipe`, the "
            "object that `generate` calls."
        )
    try:
        with halfframe.enabled(pipe, **variant.options):
            pass
    except TypeError as error:
        raise OptionError(f"variant {variant.name!r}: halfframe.enabled does not take its options: {error}.") from error
    except HalfframeError as error:
        raise type(error)(f"variant {variant.name!r}: {error}") from error
