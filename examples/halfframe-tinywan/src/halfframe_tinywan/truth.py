"""How well a clip follows its prompt, measured against the known truth: colour, shape and size of the things."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from halfframe_tinywan.language import COLOURS, SIZES, Scene, Thing

__all__ = ["Sighting", "measure"]

_FILL = {"diamond": 0.5, "ball": math.pi / 4, "square": 1.0}  # share of its bounding box that a shape covers
_CORNERED = 0.14  # a third of what a square has, and a diamond


@dataclass(frozen=True, slots=True)
class Sighting:
    """What was seen of one thing of a prompt.

    Attributes:
        thing: what the prompt said.
        found: whether anything of its colour, about as large as a small thing or more, is there in most frames.
        shape: by where its corners are; None if not found.
        size: the nearer of the sizes; None if not found.
    """

    thing: Thing
    found: bool
    shape: str | None
    size: str | None

    @property
    def right(self) -> bool:
        """Whether colour, shape and size are all as the prompt says."""
        return self.found and self.shape == self.thing.shape and self.size == self.thing.size


def measure(video: Tensor, scene: Scene) -> tuple[Sighting, ...]:
    """What `video` ``(3, F, H, W)``, values 0..1, shows of each thing of `scene`."""
    return tuple(_sight(video.float().cpu(), thing) for thing in scene.things)


def _sight(video: Tensor, thing: Thing) -> Sighting:
    colour = torch.tensor(COLOURS[thing.colour])
    colour = colour / colour.norm()  # shading changes the brightness, not the direction
    level = video.norm(dim=0)
    away = 1 - (video * colour[:, None, None, None]).sum(dim=0) / level.clamp(min=1e-3)
    weight = (1 - away / 0.06).clamp(min=0) * (level > 0.4)  # (F, H, W)
    least = 0.5 * 2 * SIZES["small"] ** 2  # pixels; a small diamond has 2 r^2
    seen = (weight > 0.3).sum(dim=(1, 2)) >= least
    if seen.float().mean() < 0.6:
        return Sighting(thing, False, None, None)
    shape, size = _form(weight[seen])
    return Sighting(thing, True, shape, size)


def _centre(profile: Tensor) -> Tensor:
    """``(F,)``: centre of mass on the circle, pixels, of profiles ``(F, length)``."""
    length = profile.shape[1]
    angle = 2 * math.pi * (torch.arange(length) + 0.5) / length
    return torch.atan2((profile * angle.sin()).sum(1), (profile * angle.cos()).sum(1)) * length / (2 * math.pi)


def _form(weight: Tensor) -> tuple[str, str]:
    """Shape and size, by the median over the frames of ``weight`` ``(F, H, W)``.

    A shape is told by the mean of ``r^4 cos 4 phi`` over that of ``r^4``, around its centre: -3/7 for a square, 3/7 for
    a diamond, which is a square on its corner, 0 for a ball.
    """
    length = weight.shape[-1]
    offset = torch.arange(length) - length // 2 + 0.5
    x, y = offset, offset[:, None]
    near = (torch.maximum(x.abs(), y.abs()) <= 1.4 * max(SIZES.values())).float()
    fourth, around = (x.square() + y.square()).square(), x**4 - 6 * x.square() * y.square() + y**4
    corners, areas = [], []
    for frame, centre_x, centre_y in zip(weight, _centre(weight.sum(dim=1)), _centre(weight.sum(dim=2)), strict=True):
        turns = (length // 2 - math.floor(centre_y), length // 2 - math.floor(centre_x))
        middle = (frame.roll(turns, dims=(0, 1)) > 0.3).float() * near
        corners.append(float((middle * around).sum() / (middle * fourth).sum().clamp(min=1e-9)))
        areas.append(float(middle.sum()))
    corner, area = (float(torch.tensor(values).median()) for values in (corners, areas))
    shape = "ball" if abs(corner) < _CORNERED else "square" if corner < 0 else "diamond"
    radius = math.sqrt(area / (4 * _FILL[shape]))
    return shape, min(SIZES, key=lambda name: abs(math.log(SIZES[name] / max(radius, 1e-9))))
