"""The rival that every acceleration has to beat: the plain pipeline with as many steps as take the same time."""

from __future__ import annotations

import math
from dataclasses import replace

from halfframe.compare.results import Comparison, Results, fewer_steps

__all__ = ["equal_steps", "rivals"]


def equal_steps(seconds: float, rest: float, step: float, steps: int) -> int | None:
    """Steps of a plain run nearest to `seconds`; None if they are all of `steps`.

    Args:
        seconds: what the rival takes.
        rest: what of a plain run is none of its steps, and stays with fewer of them.
        step: what one of its steps takes.
        steps: of the baseline.
    """
    count = max(1, math.floor((seconds - rest) / step + 0.5))
    return count if count < steps else None


def rivals(comparison: Comparison) -> list[Results]:
    """A plain variant for each halved one that has finished a clip; one for those that come to the same steps.

    What counts is the experts' time as the report predicts it, or where it predicts none the measured time of the call.
    A variant that saves less than half a step has no rival, and a note says so.
    """
    matched: dict[int, list[str]] = {}
    baseline = comparison.baseline.steps or 1
    for results in comparison.variants:
        if results.variant.options is None or not results.trials:
            continue
        predicted, measured = results.predicted_speedup, comparison.speedup(results)
        kind = "predicted" if predicted else "measured"
        if predicted:
            exact = (results.steps or baseline) / predicted
        elif measured:
            exact = baseline / measured
        else:
            continue
        steps = equal_steps(exact, 0.0, 1.0, baseline)
        if steps is None:
            comparison.notes.append(
                f"{results.variant.name} costs as much as {exact:.1f} plain steps ({kind}) of {baseline}, so no "
                "variant with fewer steps stands beside it."
            )
        else:
            matched.setdefault(steps, []).append(f"the {kind} cost of {results.variant.name} ({exact:.1f} plain steps)")
    added = []
    for steps, reasons in matched.items():
        note = "at " + " and ".join(reasons)
        asked_for = [r for r in comparison.variants if r.variant.options is None and r.steps == steps]
        for results in asked_for:
            if note not in results.variant.note:
                results.variant = replace(results.variant, note="; ".join(filter(None, [results.variant.note, note])))
        if not asked_for:
            added.append(Results(fewer_steps(steps, note), steps))
    comparison.variants.extend(added)
    return added
