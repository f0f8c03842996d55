"""How F latent frames become the K that an expert is given, and K become F again.

A mean of frames has less noise than one frame. With weights w and ``n = sqrt(sum w^2)``,

    ``sum w x = (1 - sigma) sum w x0 + sigma n eps``,

which divided by ``1 - sigma + sigma n`` is a frame at noise level ``sigma n / (1 - sigma + sigma n)``. What the expert
says the K frames show, ``x0 = x - sigma v``, is spread over the F frames, and every frame keeps its own noise:
``v = (x - x0) / sigma``.
"""

from __future__ import annotations

import math
from bisect import bisect_left, bisect_right
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from itertools import pairwise
from typing import Literal

import torch
from torch import Tensor

from halfframe.errors import StrategyError
from halfframe.sampling import frames

__all__ = ["Between", "BoundMap", "FrameMap", "Positions", "Rows"]

Rows = tuple[tuple[float, ...], ...]
Between = Literal["hold", "linear"]
"""What a frame that is not computed shows: the computed frame before it, or a blend of its neighbours."""
Positions = Literal["true", "contiguous"]
"""Temporal positions (RoPE) of the computed frames: those in the full clip, or 0, 1, 2, ..."""
_TOLERANCE = 1e-5


@dataclass(frozen=True, slots=True)
class FrameMap:
    """F latent frames -> the K that the expert is given -> F.

    Attributes:
        down: K rows of F weights; each row sums to 1, and all have the same sum of squares. One-hot rows select frames.
        up: F rows of K weights; each row sums to 1.
        positions: temporal positions (RoPE) of the K frames, increasing, 0..F-1; fractional between two frames.
        label: what reports call it.

    Raises:
        StrategyError: rows or positions are not of that form.
    """

    down: Rows
    up: Rows
    positions: tuple[float, ...]
    label: str = field(default="", compare=False)

    def __post_init__(self) -> None:
        for name in ("down", "up"):  # lists and arrays will do
            object.__setattr__(self, name, tuple(tuple(map(float, row)) for row in getattr(self, name)))
        object.__setattr__(self, "positions", tuple(map(float, self.positions)))
        count, total = len(self.down), len(self.up)
        seen = f"a frame map with {count} rows down, {total} rows up and positions {_shown(self.positions)}"
        if not 1 <= count <= total or {*map(len, self.down)} != {total} or {*map(len, self.up)} != {count}:
            raise StrategyError(f"{seen} does not fit together; needed: K rows of F weights down, F rows of K up.")
        if not all(abs(math.fsum(row) - 1) <= _TOLERANCE for row in (*self.down, *self.up)):
            raise StrategyError(f"{seen} has rows whose weights do not sum to 1; divide each row by its sum.")
        squares = [math.fsum([w * w for w in row]) for row in self.down]
        if max(squares) - min(squares) > _TOLERANCE:
            raise StrategyError(f"{seen} mixes noise levels; needed: rows down with equal sums of squares.")
        increasing = all(a < b for a, b in pairwise(self.positions))
        if len(self.positions) != count or not increasing or not 0 <= self.positions[0] <= self.positions[-1] < total:
            raise StrategyError(f"{seen} has unusable positions; needed: {count} increasing numbers in 0..{total - 1}.")

    @classmethod
    def select(
        cls,
        kept: Sequence[int],
        num_frames: int,
        *,
        between: Between = "linear",
        positions: Positions = "true",
        label: str = "",
    ) -> FrameMap:
        """Compute the frames at `kept`, increasing positions in ``range(num_frames)``.

        Raises:
            StrategyError: `kept` is not increasing, or not within the clip.
        """
        return _selection(frames.check_indices(kept, num_frames), num_frames, between, positions, label)

    @classmethod
    def mean(cls, rows: Sequence[Sequence[float]], *, positions: Positions = "true", label: str = "") -> FrameMap:
        """Compute weighted means of frames; what they show is linear in time between their centres."""
        down = tuple(map(tuple, rows))
        centres = [round(math.fsum(w * position for position, w in enumerate(row)), 9) for row in down]
        num_frames = len(down[0]) if down else 0
        return cls(down, _linear(centres, num_frames), _placed(centres, positions), label or f"{len(down)} means")

    @property
    def kept(self) -> tuple[int, ...] | None:
        """Positions of the frames that the expert is given as they are; None where it is given means."""
        return _one_hots(self.down)

    @property
    def noise(self) -> float:
        """n: how much of one frame's noise is left in what the expert is given, 0..1."""
        return math.sqrt(math.fsum([w * w for w in self.down[0]]))

    def sigma(self, sigma: float) -> float:
        """Noise level 0..1 of what the expert is given, where the clip's is `sigma`."""
        return sigma if self.kept else sigma * self.noise / self.scale(sigma)

    def scale(self, sigma: float) -> float:
        """What a mean of latents at noise level `sigma` is divided by."""
        return 1.0 if self.kept else 1 - sigma + sigma * self.noise

    def including(self, positions: Sequence[int]) -> FrameMap:
        """The same map with the frames at `positions` computed as they are.

        Raises:
            StrategyError: this map gives the expert means of frames.
        """
        kept = self.kept
        missing = [p for p in positions if kept is None or p not in kept or self.up[p][kept.index(p)] != 1]
        if not missing:
            return self
        if kept is None:
            raise StrategyError(
                f"a frame map gives the expert means of frames, but frames {missing} have a condition of their own "
                "(`last_image`) and must be computed as they are; use 'interleave'."
            )
        every = sorted({*kept, *missing})
        total = len(self.up)
        up = tuple(
            _one_hot(every.index(frame), len(every))
            if frame in missing
            else tuple(row[kept.index(p)] if p in kept else 0.0 for p in every)
            for frame, row in enumerate(self.up)
        )
        contiguous = self.positions == tuple(range(len(kept)))
        placed = _placed(every, "contiguous" if contiguous and kept != tuple(range(len(kept))) else "true")
        return FrameMap(tuple(_one_hot(p, total) for p in every), up, placed, self.label)

    def reduce(self, x: Tensor, sigma: float) -> Tensor:
        """What the expert is given of latents ``(..., F, H, W)`` at noise level `sigma`: ``(..., K, H, W)``."""
        return BoundMap(self, sigma).reduce(x)

    def expand(self, velocity: Tensor, x: Tensor, sigma: float) -> Tensor:
        """Velocity of all frames ``(..., F, H, W)`` of latents `x` from that of the K, ``(..., K, H, W)``."""
        return BoundMap(self, sigma).expand(velocity, x)


class BoundMap:
    """A `FrameMap` at one noise level, with its tables on the device that it first meets: made once per step."""

    def __init__(self, frame_map: FrameMap, sigma: float) -> None:
        self.frame_map = frame_map
        self.sigma = sigma
        self.given_sigma = frame_map.sigma(sigma)
        self._scale = frame_map.scale(sigma)
        self._tables: dict[tuple[str, torch.device], tuple[Tensor, bool]] = {}

    @property
    def count(self) -> int:
        """K, the frames that the expert is given."""
        return len(self.frame_map.down)

    @property
    def positions(self) -> tuple[float, ...] | None:
        """Temporal positions of the K frames; None where those are 0, 1, 2, ..., which every host gives by itself."""
        positions = self.frame_map.positions
        return None if positions == tuple(range(len(positions))) else positions

    def reduce(self, x: Tensor) -> Tensor:
        """What the expert is given of latents ``(..., F, H, W)``: ``(..., K, H, W)``, same dtype."""
        small = self._mix("down", x)
        return small if self._scale == 1 else (small.float() / self._scale).to(x.dtype)

    def cut(self, condition: Tensor) -> Tensor:
        """The part of a condition that goes with the frames ``(..., F, H, W)``: ``(..., K, H, W)``, same dtype."""
        return self._mix("down", condition)

    def expand(self, velocity: Tensor, x: Tensor) -> Tensor:
        """Velocity ``v = eps - x0`` of all frames of latents `x` ``(..., F, H, W)`` from that of the K; its dtype.

        A frame that equals the one that stands for it, because it was computed or mirrors one that was, gets that
        frame's velocity to the bit.
        """
        if self.sigma <= 0:  # nothing is noise any more, so a velocity says nothing of x0
            return self._mix("up", velocity)
        x = x.float()
        reduced = self._mix("down", x)
        shown = velocity.float() * (self.given_sigma / self.sigma)
        if self._scale != 1:
            reduced = reduced / self._scale
        residual = (x - self._mix("up", reduced)) / self.sigma
        return residual.add_(self._mix("up", shown)).to(velocity.dtype)

    def _mix(self, name: str, x: Tensor) -> Tensor:
        """Weighted sums of frames, in float32 at least; exact where every row takes one frame."""
        key = (name, x.device)
        if key not in self._tables:
            rows: Rows = getattr(self.frame_map, name)
            chosen = _one_hots(rows)
            table = torch.tensor(rows if chosen is None else chosen, device=x.device)
            self._tables[key] = (table, chosen is not None)
        table, selects = self._tables[key]
        if selects:
            return x.index_select(frames.TIME_DIM, table)
        exact = torch.promote_types(x.dtype, torch.float32)
        return torch.einsum("kf,...fhw->...khw", table.to(exact), x.to(exact)).to(x.dtype).contiguous()


@lru_cache(maxsize=64)  # strategies ask for the same few at every step
def _selection(kept: tuple[int, ...], num_frames: int, between: Between, positions: Positions, label: str) -> FrameMap:
    down = tuple(_one_hot(position, num_frames) for position in kept)
    up = _hold(kept, num_frames) if between == "hold" else _linear(kept, num_frames)
    return FrameMap(down, up, _placed(kept, positions), label or f"{len(kept)} of {num_frames} frames")


def _one_hot(position: int, length: int) -> tuple[float, ...]:
    return tuple(float(index == position) for index in range(length))


def _one_hots(rows: Rows) -> tuple[int, ...] | None:
    """For each row the position of its one weight; None if a row has several."""
    weights = [len(row) - row.count(0.0) for row in rows]  # lists, not generators: this is asked at every step
    return tuple([row.index(max(row)) for row in rows]) if weights == [1] * len(rows) else None


def _placed(places: Sequence[float], positions: Positions) -> tuple[float, ...]:
    return tuple(map(float, range(len(places)) if positions == "contiguous" else places))


def _hold(places: Sequence[float], num_frames: int) -> Rows:
    """Every frame takes the last of `places` at or before it; the first one before that."""
    return tuple(_one_hot(max(0, bisect_right(places, frame) - 1), len(places)) for frame in range(num_frames))


def _linear(places: Sequence[float], num_frames: int) -> Rows:
    """Linear in time between neighbouring `places`, held beyond the outermost."""
    rows = []
    for frame in range(num_frames):
        after = min(len(places) - 1, bisect_left(places, frame))
        before = max(0, bisect_right(places, frame) - 1)
        row = [0.0] * len(places)
        share = (frame - places[before]) / (places[after] - places[before]) if after > before else 0.0
        row[before] += 1 - share
        row[after] += share
        rows.append(tuple(row))
    return tuple(rows)


def _shown(positions: object) -> str:
    text = str(positions)
    return text if len(text) < 80 else text[:77] + "..."
