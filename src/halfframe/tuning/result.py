"""What `tune` returns."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

from halfframe.compare.equal_cost import nearest
from halfframe.strategies.recipe import Recipe, unweighted
from halfframe.tuning.search import MoveTable

__all__ = ["Candidate", "Measured", "Tuning"]


@dataclass(frozen=True, slots=True)
class Measured:
    """A recipe, or a rival, that was run.

    Attributes:
        recipe: its moves.
        cost: in full steps of the schedule asked for, by measured time.
        predicted: mean square error that the search expected; None for fewer steps.
        error: mean square error of the final latents, over the clips it was run on.
        errors: of each of these clips.
        kind: ``"recipe"``, ``"fewer steps"`` or ``"truncated guidance"``.
    """

    recipe: Recipe
    cost: float
    predicted: float | None
    error: float
    errors: tuple[float, ...]
    kind: str = "recipe"
    label: ClassVar[str] = "recipe"

    @property
    def text(self) -> str:
        """What tables call it: its moves, without the weights of reuses."""
        return " ".join(map(unweighted, self.recipe.moves))

    @property
    def strategy(self) -> Recipe:
        """What `halfframe.enabled` is given."""
        return self.recipe

    @property
    def steps(self) -> int:
        """Of its schedule."""
        return len(self.recipe.moves)


@dataclass(frozen=True, slots=True)
class Candidate:
    """A strategy or a recipe that was given, and run beside those that were found.

    Attributes:
        name: as `halfframe.enabled` takes it.
        steps: of its schedule.
        cost: in full steps of the schedule asked for, by measured time.
        error: mean square error of the final latents, over the clips it was run on.
        errors: of each of these clips.
    """

    name: str
    steps: int
    cost: float
    error: float
    errors: tuple[float, ...]
    predicted: ClassVar[None] = None

    @property
    def text(self) -> str:
        """What tables call it."""
        return self.name

    label = strategy = text


@dataclass(frozen=True, slots=True)
class Tuning:
    """What `tune` found.

    Attributes:
        steps: of the schedule asked for.
        tables: the errors of single moves, for each schedule that was searched.
        chosen: the best for each budget, as measured on the clips of the search: a recipe, or fewer steps where none
            is nearer.
        checked: the same recipes on clips that the search did not see; empty without such.
        rivals: fewer plain steps, and fewer steps with guidance truncated, measured on the same clips as `checked`
            (on those of the search without such).
        peak: largest square of the plain latents' range, for decibels.
        candidates: the strategies that were given, measured on the same clips as `rivals`.
    """

    steps: int
    tables: tuple[MoveTable, ...]
    chosen: tuple[Measured, ...]
    checked: tuple[Measured, ...]
    rivals: tuple[Measured, ...]
    peak: float
    candidates: tuple[Candidate, ...] = ()

    @property
    def shown(self) -> tuple[Measured | Candidate, ...]:
        """Rows of the table: the recipes, as judged on other clips if there are any, and the candidates."""
        return (*(self.checked or self.chosen), *self.candidates)

    def decibels(self, error: float) -> float:
        """A mean square error as PSNR in latents."""
        if not math.isfinite(error):
            return -math.inf
        return 10 * math.log10(self.peak / error) if error else math.inf

    def rival(self, cost: float, kind: str) -> Measured | None:
        """The rival of that kind at equal cost, by `nearest`; of several that cost the same the best."""
        kin = [rival for rival in self.rivals if rival.kind == kind]
        equal = nearest(cost, [rival.cost for rival in kin]) if kin else None
        return min((rival for rival in kin if rival.cost == equal), key=lambda rival: rival.error, default=None)
