"""A recipe: a move for every step, as a small file. Accepted wherever a strategy is."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

from halfframe.errors import OptionError, StrategyError, did_you_mean, is_count
from halfframe.sampling.guidance import GuidanceRule
from halfframe.sampling.strategy import Move, Reuse, Step, Strategy
from halfframe.strategies.merge import Merge
from halfframe.strategies.selection import Interleave, Interpolate, OwnNoise
from halfframe.strategies.windowed import Windowed

__all__ = ["Recipe", "needs", "reuses"]

VERSION = 1
MOST_EXTENDED = 2.0
"""The largest weight of a change of x0 that ``extend:W`` may add."""
_FAMILIES: Mapping[str, Callable[[int], Windowed]] = {
    cls.name: lambda stride, cls=cls: cls(stride=stride, until="end")  # type: ignore[misc]
    for cls in (Merge, Interleave, Interpolate, OwnNoise)
}
_NEEDS = {"reuse": 1, "extend": 2}
"""The moves without a forward pass, and how many computed steps must come before each."""
_WEIGHT = re.compile(r"-?\d+(\.\d+)?")
_RULES: Mapping[str, GuidanceRule] = {"": "both", "cond": "conditional", "delta": "delta"}
_FORMS = (
    f"full, {', '.join(f'{name}:N' for name in _FAMILIES)}, with N >= 2, each with +cond or +delta if wanted; "
    f"reuse; or extend:W, with W in -{MOST_EXTENDED:g}..{MOST_EXTENDED:g}, not 0"
)


def reuses(move: str) -> bool:
    """Whether a move makes no forward pass: ``reuse`` or ``extend:W``."""
    return needs(move) > 0


def needs(move: str) -> int:
    """How many computed steps must come before a move."""
    return _NEEDS.get(move.partition(":")[0], 0)


@dataclass(frozen=True)
class Recipe(Strategy):
    """A move for every step of a schedule.

    Moves:

    - ``full`` computes all frames.
    - ``reuse`` makes no forward pass and reuses the last computed prediction of x0.
    - ``extend:W`` also makes none. It extrapolates x0 linearly in the noise level from the last two computed
      predictions, with weight W: 0 would be ``reuse``, 1 continues the line.
    - ``merge:N``, ``interleave:N``, ``interpolate:N`` and ``own-noise:N`` compute one of N frames, as the strategy of
      that name. Strategies that alternate do so by the step's index.

    ``+cond`` skips the unconditional pass, and the prediction is the conditional one. ``+delta`` also skips it, and
    reuses the last guidance difference of the same expert.

    Attributes:
        moves: one for each step of the scheduler.
        shift: shift of the schedule it was made for; for information only.
        boundary: 0..1, boundary of the model it was made for; for information only.
        high_noise_steps: how many of the steps are high-noise; None allows any number.
        measured: measurements of the recipe, as JSON data; for information only.

    Raises:
        OptionError: no moves, an unknown move, or a move that has nothing to reuse.
    """

    moves: tuple[str, ...]
    shift: float | None = None
    boundary: float | None = None
    high_noise_steps: int | None = None
    measured: Mapping[str, Any] = field(default_factory=dict)
    name: ClassVar[str] = "recipe"  # type: ignore[misc]

    def __post_init__(self) -> None:
        if isinstance(self.moves, str) or not self.moves:
            raise OptionError(f"a recipe needs a list of moves, one for each step, got {self.moves!r}.")
        object.__setattr__(self, "moves", tuple(self.moves))
        parsed = [_parsed(index, move) for index, move in enumerate(self.moves)]
        if parsed[0][0] in _NEEDS or parsed[0][2] == "delta":
            raise OptionError(f"move 1, {self.moves[0]!r}, reuses what no step before it computed; begin with full.")
        bases = [base for base, _, _ in parsed]
        if "extend" in bases and sum(base not in _NEEDS for base in bases[: bases.index("extend")]) < 2:
            where = bases.index("extend")
            raise OptionError(
                f"move {where + 1}, {self.moves[where]!r}, needs two computed steps before it; use reuse, or begin "
                "with full full."
            )
        high = self.high_noise_steps
        if high is not None and not (is_count(high, 0) and high <= len(self.moves)):
            raise OptionError(f"high_noise_steps must be an integer in 0..{len(self.moves)}, got {high!r}.")

    def __bool__(self) -> bool:
        """Whether any step skips its unconditional pass."""
        return any("+" in move for move in self.moves)

    def __str__(self) -> str:
        return f"recipe of {len(self.moves)} steps"

    def move(self, step: Step) -> Move:
        """The recipe's move at `step`.

        Raises:
            StrategyError: the schedule is not of as many steps, or high-noise steps, as the recipe; or a guidance
                difference is asked for that no step before it computed.
        """
        self._require_fit(step)
        base, value, guidance = _parsed(step.index, self.moves[step.index])
        if guidance == "delta" and not self._has_delta(step):
            raise StrategyError(
                f"move {step.index + 1}, {self.moves[step.index]!r}, reuses a guidance difference, but no earlier step "
                f"of the {step.expert}-noise expert computes one; give it a step without + first."
            )
        if base in _NEEDS:
            return Reuse(value)
        return None if base == "full" else _FAMILIES[base](int(value)).move(step)

    def at(self, step: Step) -> GuidanceRule:
        """What `step` computes of guidance, see `halfframe.sampling.guidance`."""
        return _RULES[_parsed(step.index, self.moves[step.index])[2]]

    def to_dict(self) -> dict[str, Any]:
        """The recipe as plain data, as in its file."""
        data: dict[str, Any] = {"halfframe": VERSION, "steps": len(self.moves)}
        for name in ("shift", "boundary", "high_noise_steps"):
            if getattr(self, name) is not None:
                data[name] = getattr(self, name)
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
        known = ("halfframe", "steps", "shift", "boundary", "high_noise_steps", "moves", "measured")
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
        for key, kind in (("shift", int | float), ("boundary", int | float), ("measured", dict)):
            if key in data and (not isinstance(data[key], kind) or isinstance(data[key], bool)):
                raise OptionError(f'"{key}" must be {"an object" if kind is dict else "a number"}, got {data[key]!r}.')
        rest = {key: data[key] for key in known[2:5] + known[6:] if key in data}
        return cls(tuple(moves), **rest)

    def _require_fit(self, step: Step) -> None:
        high = step.expert_steps if step.expert == "high" else step.num_steps - step.expert_steps
        if step.num_steps != len(self.moves):
            raise StrategyError(
                f"the recipe is for {len(self.moves)} steps, but the schedule has {step.num_steps}; ask for as many "
                "steps, or use a recipe made for that many."
            )
        if self.high_noise_steps not in (None, high):
            raise StrategyError(
                f"the recipe is for {self.high_noise_steps} high-noise steps of {len(self.moves)}, but the schedule "
                f"has {high}; use the shift and boundary it was made for, shift {self.shift}, boundary {self.boundary}."
            )

    def _has_delta(self, step: Step) -> bool:
        first = step.index - step.expert_index
        earlier = (_parsed(index, self.moves[index]) for index in range(first, step.index))
        return any(base not in _NEEDS and not guidance for base, _, guidance in earlier)


def _parsed(index: int, move: str) -> tuple[str, float, str]:
    """``(base, value, guidance)`` of a move, such as ``("merge", 2, "cond")``, ``("extend", 0.5, "")``."""
    base, plus, guidance = move.partition("+")
    name, colon, value = base.partition(":")
    if guidance in _RULES and bool(plus) == bool(guidance):
        if not colon and (name == "full" or (name == "reuse" and not plus)):
            return name, 0, guidance
        if name in _FAMILIES and value.isdecimal() and int(value) >= 2:
            return name, int(value), guidance
        if name == "extend" and not plus and _WEIGHT.fullmatch(value) and 0 < abs(float(value)) <= MOST_EXTENDED:
            return name, float(value), guidance
    known = ("full", *_NEEDS, *_FAMILIES)
    hint = did_you_mean(name, known) if name not in known else ""
    raise OptionError(f"move {index + 1}, {move!r}, is unknown; needed: {_FORMS}.{hint}")
