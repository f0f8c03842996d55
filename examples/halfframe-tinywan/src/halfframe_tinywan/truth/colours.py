"""Pixels in a ground's own terms: how light it is, and how far the colour is from both tones.

All of it is linear in the pixel, so an edge that a VAE blurs stays half-way where it was half-way.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from halfframe_tinywan.language import COLOURS, GROUNDS

__all__ = ["Palette", "find_palette", "halved", "widened"]

_TINTED = 0.15  # RGB distance from the line through a ground's tones, from which a pixel is no ground


@dataclass(frozen=True, slots=True)
class Palette:
    """The ground's tones of each of B clips, as the clips show them.

    Attributes:
        names: of the nearest ground.
        errors: median RGB distance of the pixels from the nearer tone, ``(B,)``.
        matrix: ``(B, 3, 3)``; with `shift` it takes RGB to (lightness, two tints).
        shift: ``(B, 3)``.
        tints: of the four colours of things at their mean brightness, ``(B, 4, 2)``.
    """

    names: tuple[str, ...]
    errors: Tensor
    matrix: Tensor
    shift: Tensor
    tints: Tensor

    def project(self, clips: Tensor) -> tuple[Tensor, Tensor]:
        """Lightness ``(B, F, H, W)`` of RGB ``(B, 3, F, H, W)``, 0 dark and 1 light, and tints ``(B, 2, F, H, W)``."""
        seen = self.matrix @ clips.flatten(2) + self.shift[..., None]
        seen = seen.view(clips.shape)
        return seen[:, 0], seen[:, 1:]

    def ground(self, tints: Tensor) -> Tensor:
        """1 where the ground is seen, 0 on things and around them, ``(B, F, H, W)``."""
        return 1 - widened((tints.square().sum(dim=1) > _TINTED**2).float())

    def covers(self, tints: Tensor) -> Tensor:
        """How much of each pixel a thing of each colour of `COLOURS` covers, 0..1, ``(B, 4, F, H, W)``."""
        count, frames = tints.shape[0], tints.shape[2:]
        norms = self.tints.norm(dim=2, keepdim=True)
        along = (self.tints / norms) @ tints.flatten(2)  # (B, 4, pixels)
        own = along >= along.amax(dim=1, keepdim=True)  # of the colour that is nearest
        amount = ((along / norms - 0.15) / 0.7).clamp_(0, 1)  # neither noise nor shading counts
        covers: Tensor = (amount * own).view(count, len(COLOURS), *frames)
        return covers


def widened(mask: Tensor) -> Tensor:
    """The greatest of each pixel of ``(..., H, W)`` and its eight neighbours."""
    for dim in (-1, -2):
        length = mask.shape[dim]
        pairs = torch.maximum(mask.narrow(dim, 0, length - 1), mask.narrow(dim, 1, length - 1))
        first, last = pairs.narrow(dim, 0, 1), pairs.narrow(dim, length - 2, 1)
        inner = torch.maximum(pairs.narrow(dim, 0, length - 2), pairs.narrow(dim, 1, length - 2))
        mask = torch.cat([first, inner, last], dim=dim)
    return mask


def halved(clips: Tensor) -> Tensor:
    """``(B, C, F, H, W)`` at half the width and height."""
    rows = clips[..., ::2, :] + clips[..., 1::2, :]
    return (rows[..., ::2] + rows[..., 1::2]) / 4


def find_palette(small: Tensor) -> Palette:
    """The ground whose tones are nearest to what most pixels of ``small`` ``(B, 3, F, h, w)`` have."""
    device = small.device
    tones = torch.tensor(list(GROUNDS.values()), device=device)  # (grounds, 2, 3)
    pixels = small[:, :, :: max(1, small.shape[2] // 8), ::2, ::2].flatten(2).mT
    distances = torch.cdist(pixels, tones.flatten(0, 1).expand(len(small), -1, -1))
    nearer = distances.view(*distances.shape[:2], len(GROUNDS), 2).amin(dim=3)
    errors, numbers = nearer.median(dim=1).values.min(dim=1)
    dark, axis = tones[numbers, 0], tones[numbers, 1] - tones[numbers, 0]
    unit = functional.normalize(axis, dim=1)
    helper = functional.normalize(torch.linalg.cross(unit, unit.new_tensor([[1.0, -1.0, 0.0]]).expand_as(unit)), dim=1)
    other = torch.linalg.cross(unit, helper)
    matrix = torch.stack([axis / axis.square().sum(dim=1, keepdim=True), helper, other], dim=1)
    shift = -(matrix @ dark[..., None])[..., 0]
    colours = 0.87 * torch.tensor(list(COLOURS.values()), device=device)
    tints = colours @ matrix[:, 1:].mT + shift[:, None, 1:]
    names = tuple(GROUNDS)
    return Palette(tuple(names[n] for n in numbers.tolist()), errors, matrix, shift, tints)
