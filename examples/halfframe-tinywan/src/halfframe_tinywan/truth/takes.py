"""Truth of whole takes: whether a clip is as its prompt says, and whether what the prompt leaves open is valid."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from halfframe.errors import OptionError
from halfframe_tinywan.language import Scene
from halfframe_tinywan.truth.colours import find_palette, halved
from halfframe_tinywan.truth.motion import find_motion
from halfframe_tinywan.truth.things import Sighting, sight
from halfframe_tinywan.truth.tiles import find_tiles
from halfframe_tinywan.world import DRIFT, SIDE

__all__ = ["LIMITS", "Truth", "measure", "measure_all"]

LIMITS: dict[str, tuple[float, float]] = {
    "speed": (DRIFT[0] - 0.05, DRIFT[1] + 0.1),
    "path_error": (0.0, 1.0),
    "jerk": (0.0, 0.25),
    "duplicates": (0.0, 0.1),
    "same_scene": (0.85, 1.0),
    "tile_error": (0.0, 0.12),
    "sharpness": (0.4, 1.3),
    "steady": (0.6, 1.0),
    "thing_path_error": (0.0, 1.5),
}
"""Least and greatest valid value of each measure, set on real clips, sharp and as soft as a VAE makes them."""

_APART = int(0.6 * SIDE / DRIFT[1])  # frames in which the ground moves by no more than so much of the window


@dataclass(frozen=True, slots=True)
class Truth:
    """What was measured on a clip, without any other clip to compare it with.

    Attributes:
        scene: what the prompt says.
        sightings: of its things.
        ground: the nearest.
        ground_error: median distance of the pixels from the nearer of its tones, RGB 0..1.
        speed: of the ground, pixels per video frame.
        path_error: root mean square distance of the ground's path from that of constant velocity, pixels.
        jerk: root mean square change of the ground's velocity from frame to frame, pixels per video frame.
        duplicates: share of the frames at which the ground stays where it was, 0..1.
        same_scene: correlation of the ground with itself half a clip later (at most as late as the greatest valid
            speed leaves enough of it in sight), -1..1.
        tile_error: root mean square difference of the ground's lightness (0 dark tone, 1 light tone) from the nearest
            ground of the world's tiles.
        sharpness: of the ground's edges, 1 as drawn.
        steady: the least of the things' `Sighting.steady`, 0..1; nan if nothing was seen well.
        thing_path_error: the greatest of the things' `Sighting.path_error`, pixels; nan if nothing was seen well.
    """

    scene: Scene
    sightings: tuple[Sighting, ...]
    ground: str
    ground_error: float
    speed: float
    path_error: float
    jerk: float
    duplicates: float
    same_scene: float
    tile_error: float
    sharpness: float
    steady: float
    thing_path_error: float

    @property
    def right(self) -> bool:
        """Whether all that the prompt says is there: the ground, and every thing in its colour, shape and size."""
        return self.ground_right and all(seen.right for seen in self.sightings)

    @property
    def ground_right(self) -> bool:
        """Whether the ground has the tones that the prompt names."""
        return self.ground == self.scene.ground and self.ground_error < 0.25

    @property
    def faults(self) -> tuple[str, ...]:
        """Names of the measures outside `LIMITS`; what no thing was seen well enough for is not among them."""
        found = []
        for name, (least, most) in LIMITS.items():
            value = getattr(self, name)
            unknown = math.isnan(value) and name in ("steady", "thing_path_error")
            if not (unknown or least <= value <= most):
                found.append(name)
        return tuple(found)

    @property
    def valid(self) -> bool:
        """Whether what the prompt leaves open is as in the world: motion, texture, one scene throughout."""
        return not self.faults


def measure(video: Tensor, scene: Scene) -> tuple[Sighting, ...]:
    """What `video` ``(3, F, SIDE, SIDE)``, values 0..1, shows of each thing of `scene`."""
    return measure_all(video[None], [scene])[0].sightings


@torch.no_grad()
def measure_all(clips: Tensor, scenes: Sequence[Scene], batch: int = 16) -> list[Truth]:
    """The truth of each of `clips` ``(B, 3, F, SIDE, SIDE)``, values 0..1, on their own device, `batch` at a time.

    Raises:
        OptionError: clips of another size, fewer than 9 frames, or not one scene per clip.
    """
    if clips.ndim != 5 or clips.shape[1] != 3 or clips.shape[3:] != (SIDE, SIDE) or clips.shape[2] < 9:
        raise OptionError(
            f"clips of shape {tuple(clips.shape)}; needed: (B, 3, F, {SIDE}, {SIDE}) with 9 video frames or more."
        )
    if len(clips) != len(scenes):
        raise OptionError(f"{len(clips)} clips and {len(scenes)} scenes; needed: one scene per clip.")
    found: list[Truth] = []
    for start in range(0, len(scenes), batch):
        found += _measured(clips[start : start + batch].float(), scenes[start : start + batch])
    return found


def _measured(clips: Tensor, scenes: Sequence[Scene]) -> list[Truth]:
    count, frames = len(clips), clips.shape[2]
    small = halved(clips)
    palette = find_palette(small)
    small_light, small_tints = palette.project(small)
    small_seen = palette.ground(small_tints)
    motion = find_motion(small_light, small_seen, _APART)

    times = torch.linspace(0, frames - 1, 9, device=clips.device).round().long()
    light, tints = palette.project(clips[:, :, times])
    sightings = sight(palette.covers(tints), scenes, times)
    keys = times[::2]
    pictures = (light[:, ::2], palette.ground(tints[:, :, ::2]), small_light[:, keys], small_seen[:, keys])
    tile_error, sharpness = find_tiles(*(part.flatten(0, 1) for part in pictures))

    paces = 2 * motion.steps.norm(dim=2)
    duplicates = (paces < (0.3 * paces.mean(dim=1, keepdim=True)).clamp(min=0.1)).float().mean(dim=1)
    jerk = 2 * motion.steps.diff(dim=1).square().sum(dim=2).mean(dim=1).sqrt()
    numbers = {
        "ground_error": palette.errors,
        "speed": 2 * motion.velocity.norm(dim=1),
        "path_error": 2 * motion.off,
        "jerk": jerk,
        "duplicates": duplicates,
        "same_scene": motion.same,
        "tile_error": tile_error.view(count, -1).mean(dim=1),
        "sharpness": sharpness.view(count, -1).mean(dim=1),
    }
    rows = torch.stack(list(numbers.values()), dim=1).tolist()
    return [
        Truth(
            scene=scene,
            sightings=seen,
            ground=ground,
            steady=min(_known(one.steady for one in seen), default=math.nan),
            thing_path_error=max(_known(one.path_error for one in seen), default=math.nan),
            **dict(zip(numbers, row, strict=True)),
        )
        for scene, seen, ground, row in zip(scenes, sightings, palette.names, rows, strict=True)
    ]


def _known(values: Iterable[float]) -> list[float]:
    return [value for value in values if not math.isnan(value)]
