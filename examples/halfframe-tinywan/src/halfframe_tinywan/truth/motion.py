"""How the ground moves: one shift from frame to frame, found by least squares on the pixels."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from halfframe_tinywan.truth.colours import widened

__all__ = ["Motion", "correlation", "find_motion", "register", "shifted"]

_STEP = 8  # frames from one mark of the path to the next


@dataclass(frozen=True, slots=True)
class Motion:
    """Of B grounds; (x, y) in pixels of the pictures that were given.

    Attributes:
        steps: of the window over the ground, from each frame to the next, ``(B, F - 1, 2)``.
        velocity: the constant one that fits best, per frame, ``(B, 2)``.
        off: root mean square distance of the path from that of constant velocity, ``(B,)``.
        same: correlation of the ground with itself half a clip later, ``(B,)``; 0 where nothing of it is left.
    """

    steps: Tensor
    velocity: Tensor
    off: Tensor
    same: Tensor


def shifted(pictures: Tensor, shift: Tensor) -> Tensor:
    """``(N, C, H, W)`` read at each pixel's place plus ``shift`` ``(N, 2)``; zero outside."""
    height, width = pictures.shape[-2:]
    x = (torch.arange(width, device=pictures.device) + shift[:, :1] + 0.5) * 2 / width - 1
    y = (torch.arange(height, device=pictures.device) + shift[:, 1:] + 0.5) * 2 / height - 1
    grid = torch.stack([x[:, None].expand(-1, height, -1), y[..., None].expand(-1, -1, width)], dim=-1)
    return functional.grid_sample(pictures, grid, mode="bilinear", align_corners=False)


def _gradients(pictures: Tensor) -> tuple[Tensor, Tensor]:
    """Across and down, ``(N, H - 2, W - 2)`` each."""
    return (
        (pictures[:, 1:-1, 2:] - pictures[:, 1:-1, :-2]) / 2,
        (pictures[:, 2:, 1:-1] - pictures[:, :-2, 1:-1]) / 2,
    )


def register(
    first: Tensor, first_seen: Tensor, second: Tensor, second_seen: Tensor, start: Tensor | None, turns: int
) -> Tensor:
    """The shift ``(N, 2)`` at which `second`, read there, is like `first`: Gauss-Newton with both pictures' gradients.

    Args:
        first: pictures ``(N, H, W)``.
        first_seen: 1 where they count.
        second: the same.
        second_seen: the same.
        start: of the search; None for no shift, which spares one reading.
        turns: of the search.
    """
    both = torch.stack([second, second_seen], dim=1)
    shift = first.new_zeros(len(first), 2) if start is None else start
    across, down = _gradients(first)
    inner_seen = first_seen[:, 1:-1, 1:-1]
    for turn in range(turns):
        there = both if start is None and turn == 0 else shifted(both, shift)
        weight = (1 - widened(1 - there[:, 1]))[:, 1:-1, 1:-1] * inner_seen
        other_across, other_down = _gradients(there[:, 0])
        gx, gy = (across + other_across) / 2, (down + other_down) / 2
        error = there[:, 0, 1:-1, 1:-1] - first[:, 1:-1, 1:-1]
        wx, wy = weight * gx, weight * gy
        xx, xy, yy, xe, ye = (
            (a * b).sum(dim=(1, 2)) for a, b in ((wx, gx), (wx, gy), (wy, gy), (wx, error), (wy, error))
        )
        xx, yy = xx + 1e-3, yy + 1e-3
        determinant = (xx * yy - xy.square()).clamp(min=1e-6)
        move = torch.stack([yy * xe - xy * ye, xx * ye - xy * xe], dim=1) / determinant[:, None]
        shift = shift - move.clamp(-1.5, 1.5)
    return shift


def correlation(first: Tensor, second: Tensor, weight: Tensor) -> Tensor:
    """Of pictures ``(N, H, W)`` where `weight` is, ``(N,)``; 0 where it is on less than a fiftieth of the picture."""
    total = weight.sum(dim=(1, 2))

    def centred(picture: Tensor) -> Tensor:
        mean: Tensor = (picture * weight).sum(dim=(1, 2)) / total.clamp(min=1e-6)
        return (picture - mean[:, None, None]) * weight

    a, b = centred(first), centred(second)
    product = (a * b).sum(dim=(1, 2))
    norms = (a.square().sum(dim=(1, 2)) * b.square().sum(dim=(1, 2))).sqrt().clamp(min=1e-6)
    return torch.where(total > 0.02 * first[0].numel(), product / norms, torch.zeros_like(total)).clamp(-1, 1)


def find_motion(light: Tensor, seen: Tensor, apart: int) -> Motion:
    """Of the grounds in ``light`` ``(B, F, h, w)``, where ``seen`` is 1.

    `Motion.same` compares frames that are half a clip apart, `apart` at most.
    """
    count, frames = light.shape[:2]

    def pairs(lag: int, times: Tensor, start: Tensor | None, turns: int) -> Tensor:
        parts = (light[:, times], seen[:, times], light[:, times + lag], seen[:, times + lag])
        first, first_seen, second, second_seen = (part.flatten(0, 1) for part in parts)
        found = register(first, first_seen, second, second_seen, start, turns)
        return found.view(count, len(times), 2)

    every = torch.arange(frames - 1, device=light.device)
    steps = pairs(1, every, None, 2)
    path = functional.pad(steps.cumsum(dim=1), (0, 0, 1, 0))  # (B, F, 2)
    lag = max(1, min(_STEP, (frames - 1) // 4))
    marks = torch.arange(0, frames - lag, lag, device=light.device)
    strides = pairs(lag, marks, (path[:, marks + lag] - path[:, marks]).flatten(0, 1), 2)
    places = functional.pad(strides.cumsum(dim=1), (0, 0, 1, 0))  # (B, marks + 1, 2)
    times = torch.cat([marks, marks[-1:] + lag]).float()
    centred = times - times.mean()
    velocity = (places * centred[:, None]).sum(dim=1) / centred.square().sum()
    off = places - places.mean(dim=1, keepdim=True) - velocity[:, None] * centred[:, None]

    half = max(1, min(apart, frames // 2) // lag)  # in strides
    starts = torch.arange(0, len(times) - half, device=light.device)
    first, second = (times[n].long().clamp(max=frames - 1) for n in (starts, starts + half))
    shift = (places[:, starts + half] - places[:, starts]).flatten(0, 1)
    parts = (light[:, first], seen[:, first], light[:, second], seen[:, second])
    a, a_seen, b, b_seen = (part.flatten(0, 1) for part in parts)
    shift = register(a, a_seen, b, b_seen, shift, 2)
    there = shifted(torch.stack([b, b_seen], dim=1), shift)
    same = correlation(a, there[:, 0], a_seen * (there[:, 1] > 0.99).float())
    # What stands at x in one frame stands at x + shift in the next: the window moves the other way.
    return Motion(-steps, -velocity, off.square().sum(dim=2).mean(dim=1).sqrt(), same.view(count, -1).mean(dim=1))
