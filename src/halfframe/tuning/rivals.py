"""Fewer steps, with all their guidance or with it truncated: what a recipe has to beat."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

__all__ = ["FewerSteps", "fewer_steps", "most_steps"]


@dataclass(frozen=True, slots=True)
class FewerSteps:
    """A schedule of plain steps.

    Attributes:
        moves: ``full`` at each step, at the last ones perhaps ``full+cond``.
        cost: in full steps.
        kind: ``"fewer steps"`` or ``"truncated guidance"``.
    """

    moves: tuple[str, ...]
    cost: float
    kind: str


def fewer_steps(count: int, guided: bool) -> Iterator[FewerSteps]:
    """`count` plain steps; if they are `guided` also without the unconditional pass on the last quarter and half."""
    for skipped in dict.fromkeys((0, round(count * 0.25), round(count * 0.5)) if guided else (0,)):
        moves = ("full",) * (count - skipped) + ("full+cond",) * skipped
        yield FewerSteps(moves, count - skipped / 2, "truncated guidance" if skipped else "fewer steps")


def most_steps(budget: float, steps: int, guided: bool) -> Sequence[FewerSteps]:
    """Of up to `steps` the most that cost `budget` full steps or less: with all guidance, and with each truncation."""
    found: dict[int, FewerSteps] = {}
    for count in range(1, steps + 1):
        found |= {way: one for way, one in enumerate(fewer_steps(count, guided)) if one.cost <= budget + 1e-9}
    return tuple(found.values())
