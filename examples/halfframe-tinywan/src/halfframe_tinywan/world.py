"""The world that TinyWan was trained on: a ground of tiles that drifts past a window, and things that float over it.

The prompt names the ground's two tones and the things. It leaves open which of 16 tiles lies where, the velocity of the
drift and of every thing (both from a continuum), where the things are and how their surfaces are turned. The window is
a torus for the things and shows a part of a larger torus of ground.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from halfframe_tinywan.language import COLOURS, GROUNDS, SHAPES, SIZES, Scene

__all__ = ["DRIFT", "SIDE", "TILE", "VIDEO_FRAMES", "World", "draw_world", "render", "tile_atlas"]

SIDE = 96
"""Width and height of a clip, pixels."""
VIDEO_FRAMES = 81
TILE = 24
"""Width and height of a tile, pixels."""
DRIFT = (0.3, 1.3)
"""Least and greatest speed of the ground, pixels per video frame."""
_FLOAT = (0.0, 0.8)  # the same of things
_MAP = 12  # tiles along a side of the ground
_FINE = 2  # the ground is kept at so many samples per pixel


@dataclass(frozen=True, slots=True)
class World:
    """A scene and all that its prompt leaves open. Velocities are (x, y) in pixels per video frame, y down.

    Attributes:
        scene: what the prompt says.
        tiles: numbers of the tiles, ``(12, 12)``.
        offset: where on the ground the window's corner is in the first frame, pixels.
        drift: velocity of the window over the ground, ``(2,)``.
        starts: centres of two things in the first frame, pixels, ``(2, 2)``.
        velocities: of the things, ``(2, 2)``.
        surfaces: direction, period and phase of each thing's shading, 0..1, ``(2, 3)``.
    """

    scene: Scene
    tiles: Tensor
    offset: Tensor
    drift: Tensor
    starts: Tensor
    velocities: Tensor
    surfaces: Tensor


def draw_world(scene: Scene, seed: int) -> World:
    """A world of `scene`; drawn on the CPU, so that a seed means the same everywhere."""
    generator = torch.Generator().manual_seed(seed)

    def uniform(*shape: int) -> Tensor:
        return torch.rand(*shape, generator=generator, device="cpu")

    def velocity(limits: tuple[float, float], count: int) -> Tensor:
        angle, speed = 2 * math.pi * uniform(count), limits[0] + (limits[1] - limits[0]) * uniform(count)
        return torch.stack([speed * angle.cos(), speed * angle.sin()], dim=-1)

    tiles = torch.randint(16, (_MAP, _MAP), generator=generator, device="cpu")
    offset, starts = uniform(2) * _MAP * TILE, uniform(2, 2) * SIDE
    return World(scene, tiles, offset, velocity(DRIFT, 1)[0], starts, velocity(_FLOAT, 2), uniform(2, 3))


@functools.cache
def tile_atlas(samples: int = TILE) -> Tensor:
    """The 16 tiles at `samples` samples a side, ``(16, samples, samples)``: 0 is the dark tone, 1 the light one."""
    over = 8
    axis = (torch.arange(samples * over, device="cpu") + 0.5) / (samples * over) * 2 - 1
    y, x = torch.meshgrid(axis, axis, indexing="ij")
    disc = x.square() + y.square()
    patterns = [disc < 0.4, disc > 0.4, x.abs() + y.abs() < 0.8, torch.minimum(x.abs(), y.abs()) < 0.3]
    patterns += [x < 0, x > 0, y < 0, y > 0, x.abs() < 0.4, y.abs() < 0.4, (x - y).abs() < 0.55, (x + y).abs() < 0.55]
    patterns += [(x - a).square() + (y - b).square() < 1.9 for a in (-1, 1) for b in (-1, 1)]
    fine = torch.stack(patterns).float()
    return fine.view(16, samples, over, samples, over).mean(dim=(2, 4))


def render(worlds: Sequence[World], num_frames: int = VIDEO_FRAMES, device: str | torch.device = "cpu") -> Tensor:
    """Clips ``(len(worlds), 3, num_frames, SIDE, SIDE)``, values -1..1, as a VAE of Wan takes them."""
    time = torch.arange(num_frames, dtype=torch.float32, device=device)
    video = _ground(worlds, time)
    for number in (1, 0):  # the first one is in front
        cover, colour = _thing(worlds, number, time)
        video = video + (colour - video) * cover
    return video * 2 - 1


def _stacked(worlds: Sequence[World], name: str, device: torch.device) -> Tensor:
    return torch.stack([getattr(world, name) for world in worlds]).to(device)


def _ground(worlds: Sequence[World], time: Tensor) -> Tensor:
    """``(B, 3, F, SIDE, SIDE)``, values 0..1."""
    count, device = len(worlds), time.device
    tiles = _stacked(worlds, "tiles", device)
    span = _MAP * TILE * _FINE
    fine = tile_atlas(TILE * _FINE).to(device)[tiles]  # (B, row, column, samples, samples)
    fine = fine.permute(0, 1, 3, 2, 4).reshape(count, 1, span, span)
    fine = functional.pad(fine, (0, SIDE * _FINE + 4) * 2, mode="circular")
    fine = functional.avg_pool2d(fine, _FINE, stride=1)  # what a pixel covers; sample k is then centred at (k + 1) / 2
    width = fine.shape[-1]
    corner = _stacked(worlds, "offset", device)[:, None] + _stacked(worlds, "drift", device)[:, None] * time[:, None]
    corner = corner % (_MAP * TILE)  # (B, F, 2)
    pixels = torch.arange(SIDE, device=device) + 0.5
    places = ((corner[..., None] + pixels) * _FINE - 1) * 2 / (width - 1) - 1  # (B, F, 2, SIDE)
    across = places[:, :, 0, None, :].expand(-1, -1, SIDE, -1)
    down = places[:, :, 1, :, None].expand(-1, -1, -1, SIDE)
    grid = torch.stack([across, down], dim=-1).flatten(1, 2)
    light = functional.grid_sample(fine, grid, mode="bilinear", align_corners=True)
    light = light.view(count, 1, len(time), SIDE, SIDE)
    tones = torch.tensor([GROUNDS[world.scene.ground] for world in worlds], device=device)[..., None, None, None]
    return tones[:, 0] + (tones[:, 1] - tones[:, 0]) * light


def _thing(worlds: Sequence[World], number: int, time: Tensor) -> tuple[Tensor, Tensor]:
    """How much of each pixel the thing covers, ``(B, 1, F, SIDE, SIDE)``, and its colour, the same with 3 channels."""
    device = time.device
    things = [world.scene.things[number] if number < len(world.scene.things) else None for world in worlds]
    centre = _stacked(worlds, "starts", device)[:, number, None] + (
        _stacked(worlds, "velocities", device)[:, number, None] * time[:, None]
    )  # (B, F, 2)
    pixels = torch.arange(SIDE, device=device) + 0.5
    away = (pixels - centre[..., None] + SIDE / 2) % SIDE - SIDE / 2  # (B, F, 2, SIDE)
    x, y = away[:, None, :, 0, None, :], away[:, None, :, 1, :, None]  # (B, 1, F, 1, SIDE), (B, 1, F, SIDE, 1)

    def column(values: list[float]) -> Tensor:
        return torch.tensor(values, device=device)[:, None, None, None, None]

    radius = column([SIZES[thing.size] if thing else -9.0 for thing in things])
    kind = column([SHAPES.index(thing.shape) if thing else 0 for thing in things])
    ball = (x.square() + y.square()).sqrt() - radius
    square = torch.maximum(x.abs(), y.abs()) - radius
    diamond = (x.abs() + y.abs() - radius) / 2**0.5
    cover = (0.5 - torch.where(kind == 0, ball, torch.where(kind == 1, square, diamond))).clamp(0, 1)
    turn, period, phase = _stacked(worlds, "surfaces", device)[:, number].unbind(dim=-1)
    turn, wave = (
        (math.pi * turn)[:, None, None, None, None],
        (2 * math.pi / (8 + 6 * period))[:, None, None, None, None],
    )
    along = turn.cos() * x + turn.sin() * y
    bright = 0.87 + 0.13 * (wave * along + 2 * math.pi * phase[:, None, None, None, None]).cos()
    colour = torch.tensor([COLOURS[thing.colour] if thing else (0.0, 0.0, 0.0) for thing in things], device=device)
    return cover, colour[..., None, None, None] * bright
