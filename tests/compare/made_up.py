"""Runs whose parts take known times, so that what is made of them is known too."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

import halfframe
from halfframe.compare import Comparison, Generate, Run, Trial, Variant, fewer_steps
from halfframe.compare.results import Results
from halfframe.compare.runs import Passes

FULL, HALF = 2.0, 0.5
"""Seconds of a forward pass over all 13 latent frames and over 7 of them."""
SCHEDULER, VAE, TEXT, OWN = 0.25, 3.0, 0.5, 0.125
"""Seconds of a scheduler step, of the VAE, of the text encoder, and of the loop in all."""
ALONE = {("high", 13): FULL, ("low", 13): FULL, ("high", 7): HALF}
CUT = halfframe.Guidance(skip_last=5, skip_last_high=3)
REPORT = {"note": "", "strategy": "self-duplicate", "predicted_speedup": 1.5}

Split = tuple[int, int]


def plan(options: Mapping[str, Any] | None, steps: int) -> halfframe.Report:
    """Of 49 frames 832x480."""
    asked: dict[str, Any] = dict(options or {"strategy": None})
    return halfframe.plan(size=(832, 480), frame_num=49, sampling_steps=steps, **asked).report


def split(steps: int) -> Split:
    report = plan(None, steps)
    return report.high.steps, report.low.steps


def passes(counts: Split, truncation: Split = (0, 0)) -> dict[str, int]:
    """Forward passes of each expert with guidance, of which the last steps go without the unconditional one."""
    high, low = counts
    last, last_high = truncation
    return {"high": 2 * high - min(high, max(last_high, last - low)), "low": 2 * low - min(low, last)}


def kinds(steps: int, high: float, truncation: Split = (0, 0)) -> dict[tuple[str, int], int]:
    """Forward passes by kind."""
    counts = passes(split(steps), truncation)
    return {("high", 13 if high == FULL else 7): counts["high"], ("low", 13): counts["low"]}


def made_run(steps: int, high: float = FULL, truncation: Split = (0, 0), **others: Any) -> Run:
    found = tuple(
        Passes(*kind, count, count * ALONE[kind]) for kind, count in kinds(steps, high, truncation).items() if count
    )
    parts = {"scheduler": steps * SCHEDULER, "vae": VAE, "text": TEXT}
    seconds = sum(kind.seconds for kind in found) + sum(parts.values()) + OWN
    return Run(**{"seconds": seconds, "steps": steps, "passes": found, "parts": parts, **others})


def made_results(variant: Variant, *runs: Run, steps: int = 20, report: Mapping[str, Any] = REPORT) -> Results:
    own = None if variant.options is None else report
    trials = [Trial("a", 0, runs, report=own)] if runs else []
    return Results(variant, steps, trials, plan=plan(variant.options, steps).to_dict())


BASELINE = Variant("baseline")
HALVED = Variant("self-duplicate", {"strategy": "self-duplicate"})
TRUNCATED = Variant("cfg", {"strategy": "none", "guidance": CUT})


def made_comparison(run_steps: int = 20) -> Comparison:
    """A baseline, a halved and a truncated variant of 20 steps, run in so many."""
    cut = (5, 3) if run_steps == 20 else (1, 1)
    rows = [
        made_results(BASELINE, made_run(run_steps)),
        made_results(HALVED, made_run(run_steps, HALF)),
        made_results(TRUNCATED, made_run(run_steps, truncation=cut)),
    ]
    return Comparison(rows[0], rows[1:], {"machine": "a GPU"}, run_steps=run_steps, alone=dict(ALONE), rest=VAE)


def made_rival(steps: int, *runs: Run) -> Results:
    return made_results(fewer_steps(steps), *runs, steps=steps)


def made_host(**others: Any) -> Generate:
    return Generate(None, lambda *_: None, torch.device("cpu"), plan=plan, **others)
