"""The rival that every acceleration has to beat: the plain pipeline with as many steps as take the same time."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace

from halfframe.compare.results import Comparison, Results, fewer_steps

__all__ = ["nearest", "plain_steps", "rivals"]


def nearest(cost: float, costs: Iterable[float]) -> float:
    """The one rule of equal cost: of what rivals cost, the nearest; of two equally near ones the dearer."""
    return min(costs, key=lambda other: (abs(other - cost), -other))


def plain_steps(comparison: Comparison, results: Results) -> tuple[float, str] | None:
    """How many steps of the baseline take the time of a variant, and how that is known; None if it is not.

    Where parts were timed it is the time of the first run, without what stays with fewer steps: VAE, text encoder,
    offloading. Else it is the experts' time as the report predicts it, or the measured time of the whole call.
    """
    baseline, predicted, measured = comparison.baseline, results.predicted_speedup, comparison.speedup(results)
    steps, plain = baseline.steps or 1, baseline.runs[0]
    if plain.passes:
        own, full = comparison.timed(results, results.runs[0]), comparison.timed(baseline, plain)
        rest = plain.rest - plain.parts.get("scheduler", 0.0)
        return None if own is None or full is None else ((own - rest) / (full - rest) * steps, "measured")
    if predicted:
        return (results.steps or steps) / predicted, "predicted"
    return None if measured is None else (steps / measured, "measured")


def rivals(comparison: Comparison) -> list[Results]:
    """A plain variant for each halved one that has finished a clip; one for those that come to the same steps.

    A variant that saves less than half a step has no rival, and a note says so.
    """
    matched: dict[int, list[str]] = {}
    baseline = comparison.baseline.steps or 1
    for results in comparison.variants:
        cost = plain_steps(comparison, results) if results.variant.options is not None and results.trials else None
        if cost is None:
            continue
        exact, kind = cost
        steps = int(nearest(exact, range(1, baseline + 1)))
        if steps == baseline:
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
