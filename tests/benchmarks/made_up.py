"""Runs whose parts take known times, so that what is made of them is known too."""

from __future__ import annotations

from typing import Any

import halfframe
from _results import Section, Trials
from _steps import Forwards, Run, Split

FULL, HALF = 2.0, 0.5
"""Seconds of a forward over all 13 latent frames and over 7 of them."""
SOLVER, VAE, TEXT, OWN = 0.25, 3.0, 0.5, 0.125
"""Seconds of a solver step, of the VAE, of the text encoder, and of the loop in all."""


def forwards(split: Split, truncation: Split = (0, 0)) -> dict[str, int]:
    """Forwards of each expert with guidance, of which the last steps go without the unconditional one."""
    high, low = split
    last, last_high = truncation
    return {"high": 2 * high - min(high, max(last_high, last - low)), "low": 2 * low - min(low, last)}


def split(steps: int) -> tuple[int, int]:
    report = halfframe.plan(frame_num=5, size=(32, 32), sampling_steps=steps).report
    return report.high.steps, report.low.steps


def made_run(steps: int, high: float = FULL, truncation: tuple[int, int] = (0, 0), **others: Any) -> Run:
    counts = forwards(split(steps), truncation)
    kinds = (
        Forwards("high", 13 if high == FULL else 7, counts["high"], counts["high"] * high),
        Forwards("low", 13, counts["low"], counts["low"] * FULL),
    )
    kinds = tuple(kind for kind in kinds if kind.count)
    seconds = sum(kind.seconds for kind in kinds) + steps * SOLVER + VAE + TEXT + OWN
    return Run(steps=steps, seconds=seconds, forwards=kinds, solver=steps * SOLVER, vae=VAE, text=TEXT, **others)


def kinds(high: float, truncation: tuple[int, int] = (0, 0)) -> dict[tuple[str, int], int]:
    """Forwards of 20 steps by kind."""
    counts = forwards(split(20), truncation)
    return {("high", 13 if high == FULL else 7): counts["high"], ("low", 13): counts["low"]}


def made_section(run_steps: int = 20, **trials: Trials) -> Section:
    return Section(
        host="wan",
        clip="49x832x480",
        offload=False,
        steps=20,
        shift=12.0,
        solver="unipc",
        truncation=(5, 3),
        run_steps=run_steps,
        alone={13: FULL, 7: HALF},
        decode_alone=VAE,
        rest_guess=VAE,
        trials={name.replace("_", "-"): value for name, value in trials.items()},
    )
