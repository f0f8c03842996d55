"""Whether the ground is made of the world's own tiles, and how sharp it is."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

from halfframe_tinywan.truth.motion import register, shifted
from halfframe_tinywan.world import SIDE, TILE, tile_atlas

__all__ = ["find_tiles"]

_CELLS = SIDE // TILE - 1  # whole tiles along a side, wherever the grid is


def find_tiles(light: Tensor, seen: Tensor, small: Tensor, small_seen: Tensor) -> tuple[Tensor, Tensor]:
    """Distance to the nearest ground of valid tiles, and sharpness, ``(N,)`` each.

    The grid and its tiles are found at half the size by trying every place, and moved into place by least squares.

    Args:
        light: lightness of pictures ``(N, SIDE, SIDE)``.
        seen: 1 where the ground is seen.
        small: the same at half the size.
        small_seen: the same.

    Returns:
        Root mean square difference of the lightness, 0..1; and the slope of the picture's gradients on those of the
        sharp tiles, 1 where they are as sharp.
    """
    corner, labels = _grid(small, small_seen)
    model, inside = _model(corner, labels)
    shift = register(light, seen, model, inside, light.new_zeros(len(light), 2), 4).clamp(-3, 3)
    there = shifted(torch.stack([model, inside], dim=1), shift)
    weight = seen * (there[:, 1] > 0.99).float()
    total = weight.sum(dim=(1, 2)).clamp(min=1.0)
    distance = ((weight * (light - there[:, 0]).square()).sum(dim=(1, 2)) / total).sqrt()
    slope, energy = torch.zeros_like(total), torch.zeros_like(total)
    for dim in (1, 2):
        both = weight.narrow(dim, 1, SIDE - 1) * weight.narrow(dim, 0, SIDE - 1)
        ours, right = light.diff(dim=dim), there[:, 0].diff(dim=dim)
        slope += (both * ours * right).sum(dim=(1, 2))
        energy += (both * right.square()).sum(dim=(1, 2))
    return distance, slope / energy.clamp(min=1e-6)


def _grid(small: Tensor, seen: Tensor) -> tuple[Tensor, Tensor]:
    """Corner of the first whole tile in pixels of the full size, ``(N, 2)`` as (x, y); tiles ``(N, cells, cells)``."""
    side = TILE // 2
    atlas = functional.avg_pool2d(tile_atlas()[:, None], 2).to(small)
    masked = small * seen
    squares = functional.avg_pool2d((masked * small)[:, None], side, stride=1) * side**2
    errors = squares - 2 * functional.conv2d(masked[:, None], atlas) + functional.conv2d(seen[:, None], atlas.square())
    least, tiles = errors.min(dim=1)
    reach = _CELLS * side
    weight = functional.avg_pool2d(seen[:, None], side, stride=1)[:, 0] * side**2
    shape = (len(small), _CELLS, side, _CELLS, side)
    least, weight = (part[:, :reach, :reach].reshape(shape).sum(dim=(1, 3)) for part in (least, weight))
    place = (least / weight.clamp(min=1.0)).flatten(1).argmin(dim=1)
    y, x = place // side, place % side
    labels = tiles[:, :reach, :reach].reshape(shape)
    labels = labels[torch.arange(len(small), device=small.device), :, y, :, x]
    return 2 * torch.stack([x, y], dim=1), labels


def _model(corner: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    """Pictures ``(N, SIDE, SIDE)`` of those tiles, and 1 where they are."""
    atlas = tile_atlas().to(corner.device)
    place = torch.arange(SIDE, device=corner.device) - corner[..., None]  # (N, 2, SIDE)
    inside = ((place >= 0) & (place < _CELLS * TILE)).float()
    cell, within = (place // TILE).clamp(0, _CELLS - 1), place % TILE
    number = torch.arange(len(corner), device=corner.device)[:, None, None]
    tile = labels[number, cell[:, 1, :, None], cell[:, 0, None, :]]
    model = atlas[tile, within[:, 1, :, None], within[:, 0, None, :]]
    return model, inside[:, 1, :, None] * inside[:, 0, None, :]
