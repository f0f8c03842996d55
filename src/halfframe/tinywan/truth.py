"""How well a clip follows its prompt, measured against the known truth: colour, shape, size, direction, speed."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from halfframe.tinywan.clips import COLOURS, FRAME, RADII, Scene, Thing

__all__ = ["Sighting", "measure"]

_STILL = 0.1  # pixels per video frame, under which a thing counts as staying
_FILL = {"diamond": 0.5, "ball": math.pi / 4, "square": 1.0}  # share of its bounding box that a shape covers
_CORNERED = 0.14  # a third of what a square has, and a diamond


@dataclass(frozen=True, slots=True)
class Sighting:
    """What was seen of one thing of a prompt.

    Attributes:
        thing: what the prompt said.
        found: whether anything of its colour is there, about as large as a small thing or more, in most frames.
        velocity: (x, y) of its centre, pixels per video frame at a frame of 64x64; nan if not found.
        shape: by where its corners are; None if not found.
        size: the nearer of the sizes; None if not found.
    """

    thing: Thing
    found: bool
    velocity: tuple[float, float]
    shape: str | None
    size: str | None

    @property
    def direction_right(self) -> bool:
        """Whether it moves along the axis and to the side that it should, or stays if it should."""
        if not self.found:
            return False
        (x, y), (right_x, right_y) = self.velocity, self.thing.velocity
        if self.thing.direction is None:
            return math.hypot(x, y) < _STILL
        along, across = x * right_x + y * right_y, x * right_y - y * right_x
        return along > abs(across) and math.hypot(x, y) >= _STILL

    @property
    def speed(self) -> float:
        """Pixels per video frame."""
        return math.hypot(*self.velocity)

    @property
    def speed_error(self) -> float:
        """How far the velocity is from the prompt's, pixels per video frame."""
        return math.dist(self.velocity, self.thing.velocity)

    @property
    def right(self) -> bool:
        """Whether colour, shape, size and direction are all as the prompt says."""
        return self.direction_right and self.shape == self.thing.shape and self.size == self.thing.size


def measure(video: Tensor, scene: Scene) -> tuple[Sighting, ...]:
    """What `video` ``(3, F, H, W)``, values 0..1, shows of each thing of `scene`."""
    return tuple(_sight(video, thing) for thing in scene.things)


def _sight(video: Tensor, thing: Thing) -> Sighting:
    size = video.shape[-1]
    scale = size / FRAME
    colour = torch.tensor(COLOURS[thing.colour]).view(3, 1, 1, 1)
    distance = (video.float().cpu() - colour).square().sum(dim=0).sqrt()
    weight = (1 - distance / 0.4).clamp(min=0)  # (F, H, W)
    least = 0.4 * 2 * (RADII["small"] * scale) ** 2  # pixels; a small diamond has 2 r^2
    seen = (weight > 0.3).sum(dim=(1, 2)) >= least
    if seen.float().mean() < 0.6:
        return Sighting(thing, False, (math.nan, math.nan), None, None)
    centres = [_centre(weight.sum(dim=dim)) for dim in (1, 2)]  # x over columns, y over rows
    times = torch.arange(len(seen))[seen].float()
    velocity = tuple(_slope(times, _unwrapped(centre[seen], size)) / scale for centre in centres)
    shape, found_size = _form(weight[seen], [centre[seen] for centre in centres], scale)
    return Sighting(thing, True, (velocity[0], velocity[1]), shape, found_size)


def _centre(profile: Tensor) -> Tensor:
    """``(F,)``: centre of mass on the circle, pixels, of profiles ``(F, length)``."""
    length = profile.shape[1]
    angle = 2 * math.pi * (torch.arange(length) + 0.5) / length
    return torch.atan2((profile * angle.sin()).sum(1), (profile * angle.cos()).sum(1)) * length / (2 * math.pi)


def _unwrapped(centre: Tensor, length: int) -> Tensor:
    """A path on the circle as one on the line."""
    steps = (centre.diff() + length / 2) % length - length / 2
    return torch.cat([centre[:1], centre[:1] + steps.cumsum(0)])


def _slope(times: Tensor, values: Tensor) -> float:
    times = times - times.mean()
    return float((times * (values - values.mean())).sum() / times.square().sum().clamp(min=1e-9))


def _form(weight: Tensor, centres: list[Tensor], scale: float) -> tuple[str, str]:
    """Shape and size, by the median over the frames of ``weight`` ``(F, H, W)``.

    A shape is told by the mean of ``r^4 cos 4 phi`` over that of ``r^4``, around its centre: -3/7 for a square, 3/7 for
    a diamond, which is a square on its corner, 0 for a ball. Blurring takes from the number, but leaves its sign.
    """
    length = weight.shape[-1]
    offset = torch.arange(length) - length // 2 + 0.5
    x, y = offset, offset[:, None]
    near = (torch.maximum(x.abs(), y.abs()) <= 1.4 * max(RADII.values()) * scale).float()
    fourth, around = (x.square() + y.square()).square(), x**4 - 6 * x.square() * y.square() + y**4
    corners, areas = [], []
    for frame, centre_x, centre_y in zip(weight, *centres, strict=True):
        turns = (length // 2 - math.floor(centre_y), length // 2 - math.floor(centre_x))
        middle = frame.roll(turns, dims=(0, 1)) * near
        corners.append(float((middle * around).sum() / (middle * fourth).sum().clamp(min=1e-9)))
        areas.append(float((middle > 0.3).sum()))
    corner, area = (float(torch.tensor(values).median()) for values in (corners, areas))
    shape = "ball" if abs(corner) < _CORNERED else "square" if corner < 0 else "diamond"
    radius = math.sqrt(area / (4 * _FILL[shape]))
    return shape, min(RADII, key=lambda name: abs(math.log(RADII[name] * scale / max(radius, 1e-9))))
