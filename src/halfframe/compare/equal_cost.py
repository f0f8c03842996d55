"""The rival that every acceleration has to beat: the plain pipeline with as many steps as cost the same."""

from __future__ import annotations

from dataclasses import replace
from typing import Literal

from halfframe.compare.results import Comparison, Results, fewer_steps

__all__ = ["EqualCost", "rivals"]

EqualCost = Literal["predicted", "measured"]


def rivals(comparison: Comparison, mode: EqualCost) -> list[Results]:
    """A plain variant for each halved one that has finished a clip; one for those that come to the same steps.

    ``"predicted"``: its steps over the predicted speed-up of the experts (the measured one if there is none);
    ``"measured"``: the baseline's steps times its share of the baseline's seconds. Rounded to nearest. A variant that
    saves less than half a step has no rival, and a note says so.
    """
    matched: dict[int, list[str]] = {}
    for results in comparison.variants:
        if results.variant.options is None or not results.trials:
            continue
        exact, kind = _equivalent_steps(comparison, results, mode)
        if exact is None:
            continue
        steps = max(1, round(exact))
        baseline_steps = comparison.baseline.steps or 1
        if steps >= baseline_steps:
            comparison.notes.append(
                f"{results.variant.name} costs as much as {exact:.1f} plain steps ({kind}) of {baseline_steps}, so no "
                "variant with fewer steps stands beside it."
            )
            continue
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


def _equivalent_steps(comparison: Comparison, results: Results, mode: EqualCost) -> tuple[float | None, str]:
    predicted = results.predicted_speedup
    if mode == "predicted" and predicted and results.steps:
        return results.steps / predicted, "predicted"
    measured = comparison.speedup(results)
    return (comparison.baseline.steps / measured if measured and comparison.baseline.steps else None), "measured"
