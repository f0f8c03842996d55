"""A recipe: a move for every step, as a small file. Accepted wherever a strategy is."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar, NamedTuple

from halfframe.errors import OptionError, StrategyError, did_you_mean, is_count
from halfframe.sampling.guidance import Delta, GuidanceRule
from halfframe.sampling.strategy import Move, Reuse, Step, Strategy
from halfframe.sampling.weights import MOST_WEIGHTS
from halfframe.strategies.merge import Merge
from halfframe.strategies.selection import Interleave, Interpolate, OwnNoise
from halfframe.strategies.windowed import Windowed

__all__ = ["Recipe", "differences", "needs", "reuses", "unweighted"]

VERSION = 1
MOST_WEIGHT = 10.0
"""The largest weight of an earlier step, whatever its sign."""
_SAME_LEVEL = 0.01
"""Noise levels that differ by no more are the same: hosts round theirs."""
_FAMILIES: Mapping[str, Callable[[int], Windowed]] = {
    cls.name: lambda stride, cls=cls: cls(stride=stride, until="end")  # type: ignore[misc]
    for cls in (Merge, Interleave, Interpolate, OwnNoise)
}
_WEIGHT = re.compile(r"-?[0-9]+(\.[0-9]+)?")
_FORMS = (
    f"full, {', '.join(f'{name}:N' for name in _FAMILIES)}, with N >= 2, each with +cond, +delta or +delta:A,B,... if "
    f"wanted; or reuse or reuse:A,B,..., with 1 to {MOST_WEIGHTS} weights in -{MOST_WEIGHT:g}..{MOST_WEIGHT:g}"
)


def reuses(move: str) -> bool:
    """Whether a move makes no forward pass: ``reuse`` or ``reuse:A,B,...``."""
    return needs(move) > 0


def needs(move: str) -> int:
    """How many computed steps must come before a move: as many as ``reuse`` has weights, else 0."""
    return len(_weights("reuse", move) or ())


def differences(move: str) -> int:
    """How many steps of its expert that compute both passes must come before a move: as many as ``+delta`` has weights.

    0 without ``+delta``.
    """
    return len(_weights("delta", move.partition("+")[2]) or ())


def unweighted(move: str) -> str:
    """A move without the weights of what it reuses: ``reuse:1.72,-0.72`` -> ``reuse``."""
    return re.sub(r"(reuse|delta):.*", r"\1", move)


@dataclass(frozen=True)
class Recipe(Strategy):
    """A move for every step of a schedule.

    Moves:

    - ``full`` computes all frames.
    - ``reuse`` makes no forward pass and reuses the x0 of the last computed step. ``reuse:A,B,...``, with 1 to 4
      weights, reuses a weighted sum: A times that x0, plus B times that of the computed step before, and so on.
    - ``merge:N``, ``interleave:N``, ``interpolate:N`` and ``own-noise:N`` compute one of N frames, as the strategy of
      that name. Strategies that alternate do so by the step's index.

    ``+cond`` skips the unconditional pass, and the prediction is the conditional one. ``+delta`` also skips it, and
    reuses the last guidance difference of the same expert; ``+delta:A,B,...`` reuses a weighted sum of the last ones,
    latest first. Only steps that compute both passes give one.

    Attributes:
        moves: one for each step of the scheduler.
        high_noise_steps: how many of the steps are high-noise; None allows any number.
        sigmas: noise levels 0..1 of the steps it was made for, to which its weights belong; a schedule of others is
            refused. None allows any.
        measured: measurements of the recipe, as JSON data; for information only.

    Raises:
        OptionError: no moves, an unknown move, or a move that reuses more than the steps before it compute.
    """

    moves: tuple[str, ...]
    high_noise_steps: int | None = None
    sigmas: tuple[float, ...] | None = None
    measured: Mapping[str, Any] = field(default_factory=dict)
    name: ClassVar[str] = "recipe"  # type: ignore[misc]

    def __post_init__(self) -> None:
        if isinstance(self.moves, str) or not self.moves:
            raise OptionError(f"a recipe needs a list of moves, one for each step, got {self.moves!r}.")
        object.__setattr__(self, "moves", tuple(self.moves))
        for index, move in enumerate(self.moves):
            _parsed(index, move)
        for index in range(len(self.moves)):
            lacking = self._lacking(index)
            if lacking:
                raise OptionError(lacking)
        high = self.high_noise_steps
        if high is not None and not (is_count(high, 0) and high <= len(self.moves)):
            raise OptionError(f"high_noise_steps must be an integer in 0..{len(self.moves)}, got {high!r}.")
        if self.sigmas is not None:
            object.__setattr__(self, "sigmas", tuple(self.sigmas))
            if len(self.sigmas) != len(self.moves) or not all(_is_level(sigma) for sigma in self.sigmas):
                raise OptionError(f"sigmas must be {len(self.moves)} numbers in 0..1, got {list(self.sigmas)!r}.")

    def __bool__(self) -> bool:
        """Whether any step skips its unconditional pass."""
        return any("+" in move for move in self.moves)

    def __str__(self) -> str:
        return f"recipe of {len(self.moves)} steps"

    def accept(self, steps: Sequence[Step]) -> None:
        """Refuse a schedule that the recipe was not made for.

        Raises:
            StrategyError: it has another number of steps or high-noise steps, or other noise levels.
        """
        for step in steps:
            high = step.expert_steps if step.expert == "high" else step.num_steps - step.expert_steps
            if step.num_steps != len(self.moves):
                raise StrategyError(
                    f"the recipe is for {len(self.moves)} steps, but the schedule has {step.num_steps}; ask for as "
                    "many steps, or use a recipe made for that many."
                )
            if self.high_noise_steps not in (None, high):
                raise StrategyError(
                    f"the recipe is for {self.high_noise_steps} high-noise steps of {len(self.moves)}, but the "
                    f"schedule has {high}; use the shift and boundary it was made for."
                )
            made_for = step.sigma if self.sigmas is None else self.sigmas[step.index]
            if abs(made_for - step.sigma) > _SAME_LEVEL:
                raise StrategyError(
                    f"the recipe is for noise level {made_for:.3f} at step {step.index + 1}, but the schedule has "
                    f"{step.sigma:.3f}; use the shift and the scheduler it was made for."
                )

    def move(self, step: Step) -> Move:
        """The recipe's move at `step`.

        Raises:
            StrategyError: a guidance difference is asked for that no step before it computed.
        """
        lacking = self._lacking(step.index, step)
        if lacking:
            raise StrategyError(lacking)
        base, value, _ = _parsed(step.index, self.moves[step.index])
        if isinstance(value, int):
            return _FAMILIES[base](value).move(step)
        return Reuse(value) if value else None

    def at(self, step: Step) -> GuidanceRule:
        """What `step` computes of guidance, see `halfframe.sampling.guidance`."""
        return _parsed(step.index, self.moves[step.index])[2]

    def to_dict(self) -> dict[str, Any]:
        """The recipe as plain data, as in its file."""
        data: dict[str, Any] = {"halfframe": VERSION, "steps": len(self.moves)}
        if self.high_noise_steps is not None:
            data["high_noise_steps"] = self.high_noise_steps
        if self.sigmas is not None:
            data["sigmas"] = list(self.sigmas)
        data["moves"] = list(self.moves)
        if self.measured:
            data["measured"] = dict(self.measured)
        return data

    def save(self, path: str | Path) -> None:
        """Write the recipe to a file."""
        Path(path).write_text(json.dumps(self.to_dict(), indent=2) + "\n", encoding="utf-8")

    @classmethod
    def load(cls, path: str | Path) -> Recipe:
        """Read a recipe from a file.

        Raises:
            OptionError: the file is missing, is not JSON, or holds no recipe of this version; the message says which.
        """
        try:
            data = json.loads(Path(path).read_text(encoding="utf-8"))
        except OSError as error:
            raise OptionError(f"recipe {path} cannot be read: {error.strerror}; give the path of a recipe.") from error
        except ValueError as error:
            raise OptionError(f"recipe {path} is not JSON: {error}; write it with Recipe.save.") from error
        try:
            return cls.from_dict(data)
        except OptionError as error:
            raise OptionError(f"recipe {path}: {error}") from error

    @classmethod
    def from_dict(cls, data: Any) -> Recipe:
        """A recipe from plain data, as `to_dict` gives it.

        Raises:
            OptionError: the data is not a recipe of this version; the message says why.
        """
        if not isinstance(data, dict) or "halfframe" not in data:
            raise OptionError('not a recipe; needed: an object with "halfframe", "steps" and "moves".')
        if data["halfframe"] != VERSION:
            raise OptionError(
                f"format version {data['halfframe']!r} is unknown to this halfframe, which reads {VERSION}; update "
                "halfframe, or make the recipe again."
            )
        known = ("halfframe", "steps", "high_noise_steps", "sigmas", "moves", "measured")
        unknown = [key for key in data if key not in known]
        if unknown:
            raise OptionError(
                f"unknown key {unknown[0]!r}; known are {', '.join(known)}.{did_you_mean(unknown[0], known)}"
            )
        moves = data.get("moves")
        if not isinstance(moves, list) or not all(isinstance(move, str) for move in moves):
            raise OptionError(f'"moves" must be a list of names, got {moves!r}.')
        if data.get("steps") != len(moves):
            raise OptionError(
                f'"steps" is {data.get("steps")!r}, but there are {len(moves)} moves; needed: one a step.'
            )
        for key, kind, named in (("sigmas", list, "a list"), ("measured", dict, "an object")):
            if key in data and not isinstance(data[key], kind):
                raise OptionError(f'"{key}" must be {named}, got {data[key]!r}.')
        rest = {key: data[key] for key in ("high_noise_steps", "sigmas", "measured") if key in data}
        return cls(tuple(moves), **rest)

    def _lacking(self, index: int, step: Step | None = None) -> str:
        """Why a move cannot reuse as much as it is to; empty if it can. Experts are known only with a `step`."""
        move = self.moves[index]
        found = sum(not reuses(earlier) for earlier in self.moves[:index])
        if needs(move) > found:
            return (
                f"move {index + 1}, {move!r}, reuses {_counted(needs(move), 'prediction')}, but earlier steps compute "
                f"{found}; begin with as many full steps, or give fewer weights."
            )
        first, of = (0, "") if step is None else (index - step.expert_index, f" of the {step.expert}-noise expert")
        found = sum(not reuses(earlier) and "+" not in earlier for earlier in self.moves[first:index])
        if differences(move) > found:
            return (
                f"move {index + 1}, {move!r}, reuses {_counted(differences(move), 'guidance difference')}, but earlier "
                f"steps{of} compute {found}; put as many steps without + before it, or give fewer weights."
            )
        return ""


def _is_level(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and 0 <= value <= 1


class _Parsed(NamedTuple):
    """A move: its name, N or the weights of the x0 that it reuses (none for ``full``), and its rule of guidance."""

    name: str
    value: int | tuple[float, ...]
    rule: GuidanceRule


def _parsed(index: int, move: str) -> _Parsed:
    base, plus, guidance = move.partition("+")
    name, _, value = base.partition(":")
    rule = _rule(guidance) if plus else "both"
    weights = None if plus else _weights("reuse", base)
    if weights is not None:
        return _Parsed(name, weights, "both")
    if rule is not None and base == "full":
        return _Parsed(name, (), rule)
    if rule is not None and name in _FAMILIES and value.isdecimal() and int(value) >= 2:
        return _Parsed(name, int(value), rule)
    known = ("full", "reuse", *_FAMILIES)
    hint = did_you_mean(name, known) if name not in known else ""
    raise OptionError(f"move {index + 1}, {move!r}, is unknown; needed: {_FORMS}.{hint}")


def _rule(guidance: str) -> GuidanceRule | None:
    """What ``cond``, ``delta`` or ``delta:A,B,...`` computes; None for anything else."""
    weights = _weights("delta", guidance)
    return "conditional" if guidance == "cond" else None if weights is None else Delta(weights)


def _weights(name: str, text: str) -> tuple[float, ...] | None:
    """The weights of ``name`` or ``name:A,B,...``; None if `text` is of neither form."""
    head, colon, listed = text.partition(":")
    weights = listed.split(",") if colon else ["1"]
    fits = len(weights) <= MOST_WEIGHTS and all(
        _WEIGHT.fullmatch(weight) and abs(float(weight)) <= MOST_WEIGHT for weight in weights
    )
    return tuple(map(float, weights)) if head == name and fits else None


def _counted(count: int, what: str) -> str:
    return f"{count} {what}" if count == 1 else f"{count} {what}s"
