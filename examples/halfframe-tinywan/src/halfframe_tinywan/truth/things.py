"""How the things follow the prompt: colour, shape and size, and whether they keep their form and move evenly.

Every thing is compared with all shapes and sizes at every place of the window (which is a torus for things), at nine
frames. What the thing in front hides counts for nothing.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from halfframe_tinywan.language import COLOURS, SHAPES, SIZES, Scene, Thing
from halfframe_tinywan.truth.colours import widened
from halfframe_tinywan.world import SIDE

__all__ = ["Sighting", "sight"]

_FORMS = tuple((shape, size) for shape in SHAPES for size in SIZES)
_PATCH = 2 * math.ceil(max(SIZES.values()) + 3)
_OFFSETS = tuple((x / 2, y / 2) for y in range(-2, 3) for x in range(-2, 3))
_LEAST = 0.3 * 2 * min(SIZES.values()) ** 2  # pixels; a small diamond has 2 r^2


@dataclass(frozen=True, slots=True)
class Sighting:
    """What was seen of one thing of a prompt.

    Attributes:
        thing: what the prompt said.
        found: whether something of its colour is there: in 8 of 9 frames if nothing can hide it, else in half of them.
        shape: the nearest; None if not found.
        size: the nearest; None if not found.
        form_error: what differs from that shape and size, as a share of its area; nan if not found.
        steady: share of the frames that show it well in which it is of that shape and size; nan if there is none.
        path_error: root mean square distance of its centre from a path of constant velocity, pixels; nan if fewer than
            four frames show it well.
    """

    thing: Thing
    found: bool
    shape: str | None
    size: str | None
    form_error: float
    steady: float
    path_error: float

    @property
    def right(self) -> bool:
        """Whether colour, shape and size are all as the prompt says."""
        return self.found and self.shape == self.thing.shape and self.size == self.thing.size


def sight(covers: Tensor, scenes: Sequence[Scene], times: Tensor) -> list[tuple[Sighting, ...]]:
    """What ``covers`` ``(B, 4, K, SIDE, SIDE)``, see `Palette.covers`, show at ``times`` ``(K,)`` of each scene."""
    order = list(COLOURS)
    owners = [(clip, thing) for clip, scene in enumerate(scenes) for thing in scene.things]
    amount = torch.stack([covers[clip, order.index(thing.colour)] for clip, thing in owners])  # (N, K, SIDE, SIDE)
    hidden = torch.zeros_like(amount)
    for number, (clip, thing) in enumerate(owners):
        front = scenes[clip].things[0]
        if thing is not front:
            hidden[number] = widened(covers[clip, order.index(front.colour)])
    seen = (hidden < 0.2).float()
    errors, centres, visible = _fit(amount * seen, seen)
    areas = (amount * seen > 0.5).sum(dim=(2, 3))
    found: list[list[Sighting]] = [[] for _ in scenes]
    rows = zip(owners, errors.cpu(), centres.cpu(), visible.cpu(), areas.cpu(), strict=True)
    for (clip, thing), error, centre, part, area in rows:
        unhidden = not found[clip]  # the first thing is in front
        found[clip].append(_sighting(thing, unhidden, error, centre, part, area, times.cpu().float()))
    return [tuple(sightings) for sightings in found]


def _sighting(
    thing: Thing, unhidden: bool, errors: Tensor, centres: Tensor, visible: Tensor, areas: Tensor, times: Tensor
) -> Sighting:
    """From one thing's ``errors`` and ``visible`` ``(K, forms)``, ``centres`` ``(K, forms, 2)``, ``areas`` ``(K,)``."""
    there = areas >= _LEAST
    if there.float().mean() < (0.8 if unhidden else 0.5):
        return Sighting(thing, False, None, None, math.nan, math.nan, math.nan)
    best = int(errors[there].sum(dim=0).argmin())
    shape, size = _FORMS[best]
    whole = _areas()[best]
    error = float(errors[there, best].sum() / visible[there, best].sum().clamp(min=1.0))
    plain = there & (visible[:, best] > 0.8 * whole)
    steady = float((errors[plain].argmin(dim=1) == best).float().mean())
    return Sighting(thing, True, shape, size, error, steady, _path_error(centres[plain, best], times[plain]))


def _path_error(centres: Tensor, times: Tensor) -> float:
    if len(times) < 4:
        return math.nan
    steps = (centres.diff(dim=0) + SIDE / 2) % SIDE - SIDE / 2
    path = functional.pad(steps.cumsum(dim=0), (0, 0, 1, 0))
    centred = (times - times.mean())[:, None]
    path = path - path.mean(dim=0)
    off = path - centred * (path * centred).sum(dim=0) / centred.square().sum()
    return float(off.square().sum(dim=1).mean().sqrt())


def _fit(amount: Tensor, seen: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Squared error ``(N, K, forms)`` of each form at its best place, that place (x, y), and its area in sight."""
    count, frames = amount.shape[:2]
    half, bank = (part.to(amount.device) for part in _banks())
    small, small_seen = functional.avg_pool2d(amount, 2), functional.avg_pool2d(seen, 2)
    spectrum = torch.fft.rfft2(half).conj(), torch.fft.rfft2(half.square()).conj()
    product = torch.fft.rfft2(small)[:, :, None] * (-2 * spectrum[0])
    product += torch.fft.rfft2(small_seen)[:, :, None] * spectrum[1]
    coarse = torch.fft.irfft2(product, s=small.shape[-2:])  # (N, K, forms, SIDE / 2, SIDE / 2)
    place = coarse.flatten(3).argmin(dim=3)
    centre = 2 * torch.stack([place % (SIDE // 2), place // (SIDE // 2)], dim=-1)  # (N, K, forms, 2)

    around = torch.arange(_PATCH, device=amount.device) - _PATCH // 2
    window = (centre[..., None] + around) % SIDE  # (N, K, forms, 2, PATCH)
    index = (window[..., 1, :, None] * SIDE + window[..., 0, None, :]).flatten(2)
    patches = [part.flatten(2).gather(2, index).view(count, frames, len(_FORMS), -1) for part in (amount, seen)]
    explained = torch.einsum("nktp,top->nkto", patches[0], bank)
    in_sight = torch.einsum("nktp,top->nkto", patches[1], bank.square())
    errors, best = (in_sight - 2 * explained).min(dim=3)
    total = amount.square().sum(dim=(2, 3))[..., None]
    visible = in_sight.gather(3, best[..., None])[..., 0]
    moved = torch.tensor(_OFFSETS, device=amount.device)[best]
    return errors + total, (centre + moved) % SIDE, visible


def _cover(shape: str, radius: float, x: Tensor, y: Tensor) -> Tensor:
    """As the world draws it."""
    if shape == "ball":
        away = (x.square() + y.square()).sqrt() - radius
    elif shape == "square":
        away = torch.maximum(x.abs(), y.abs()) - radius
    else:
        away = (x.abs() + y.abs() - radius) / 2**0.5
    return (0.5 - away).clamp(0, 1)


@functools.cache
def _banks() -> tuple[Tensor, Tensor]:
    """All forms at half the size around the corner, and in a patch at all offsets, ``(forms, offsets, pixels)``."""
    axis = torch.arange(SIDE) + 0.5
    axis = (axis + SIDE / 2) % SIDE - SIDE / 2
    near = torch.arange(_PATCH) - _PATCH // 2 + 0.5
    whole, patches = [], []
    for shape, size in _FORMS:
        radius = SIZES[size]
        whole.append(_cover(shape, radius, axis, axis[:, None]))
        offsets = [_cover(shape, radius, near - x, near[:, None] - y).flatten() for x, y in _OFFSETS]
        patches.append(torch.stack(offsets))
    return functional.avg_pool2d(torch.stack(whole)[:, None], 2)[:, 0], torch.stack(patches)


def _areas() -> list[float]:
    """Of all forms, pixels."""
    return _banks()[1][:, 0].square().sum(dim=1).tolist()
