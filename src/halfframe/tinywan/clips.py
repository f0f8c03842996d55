"""Procedural clips whose motion is known: one or two coloured shapes over a background, described by a prompt.

The frame is a torus: what leaves it on one side comes back on the other, so a shape keeps one velocity throughout.
Lengths are given for a frame of 64x64 pixels and grow with it.
"""

from __future__ import annotations

import random
from dataclasses import dataclass

import torch
from torch import Tensor

from halfframe.errors import OptionError

__all__ = [
    "BACKGROUNDS",
    "COLOURS",
    "DIRECTIONS",
    "FRAME",
    "RADII",
    "SHAPES",
    "SPEEDS",
    "Scene",
    "Thing",
    "parse_prompt",
    "random_scene",
    "render",
]

Rgb = tuple[float, float, float]

FRAME = 64
"""Pixels along a frame's side at which `RADII` and `SPEEDS` are given."""

COLOURS: dict[str, Rgb] = {
    "red": (0.9, 0.1, 0.1),
    "green": (0.1, 0.8, 0.15),
    "blue": (0.15, 0.25, 0.95),
    "yellow": (0.95, 0.85, 0.1),
}
SHAPES = ("ball", "square", "diamond")
RADII = {"small": 6.0, "big": 10.0}
"""Half the width of a shape, pixels."""
DIRECTIONS = {"left": (-1, 0), "right": (1, 0), "up": (0, -1), "down": (0, 1)}
SPEEDS = {"slowly": 0.25, "fast": 0.75}
"""Pixels per video frame."""
BACKGROUNDS = ("black", "grey", "stripes")
_PERIOD = 16  # pixels of a dark stripe and a bright one


@dataclass(frozen=True, slots=True)
class Thing:
    """One shape and its motion; `direction` and `speed` are None for one that stays."""

    size: str
    colour: str
    shape: str
    direction: str | None = None
    speed: str | None = None

    def __str__(self) -> str:
        motion = "stays" if self.direction is None else f"moves {self.direction} {self.speed}"
        return f"a {self.size} {self.colour} {self.shape} {motion}"

    @property
    def velocity(self) -> tuple[float, float]:
        """(x, y) in pixels per video frame, x to the right and y down."""
        if self.direction is None or self.speed is None:
            return (0.0, 0.0)
        x, y = DIRECTIONS[self.direction]
        return (x * SPEEDS[self.speed], y * SPEEDS[self.speed])


@dataclass(frozen=True, slots=True)
class Scene:
    """What a prompt says: a background and one or two things, the first in front. ``str(scene)`` is the prompt."""

    background: str
    things: tuple[Thing, ...]

    def __str__(self) -> str:
        first, *others = map(str, self.things)
        return ", ".join([f"{first} over {self.background}", *others])


def random_scene(rng: random.Random) -> Scene:
    """One or two things of different colours, all else independent and uniform; a quarter of the things stay."""
    colours = rng.sample(sorted(COLOURS), rng.choice((1, 2)))
    things = tuple(
        Thing(rng.choice(sorted(RADII)), colour, rng.choice(SHAPES), *_random_motion(rng)) for colour in colours
    )
    return Scene(rng.choice(BACKGROUNDS), things)


def _random_motion(rng: random.Random) -> tuple[str | None, str | None]:
    if rng.random() < 0.25:
        return None, None
    return rng.choice(sorted(DIRECTIONS)), rng.choice(sorted(SPEEDS))


_GRAMMAR = (
    'needed: "a small|big COLOUR SHAPE moves left|right|up|down slowly|fast" or "... stays", the first followed by '
    f'"over {"|".join(BACKGROUNDS)}", then, if you like, a comma and a second one of another colour; colours: '
    f"{', '.join(COLOURS)}; shapes: {', '.join(SHAPES)}."
)


def parse_prompt(prompt: str) -> Scene:
    """The scene that `prompt` describes.

    Raises:
        OptionError: the prompt is outside the closed vocabulary.
    """
    parts = [part.split() for part in prompt.lower().strip().strip(".").split(",")]
    first, background = parts[0][:-2], parts[0][-2:]
    if len(parts) > 2 or len(background) < 2 or background[0] != "over" or background[1] not in BACKGROUNDS:
        raise OptionError(f"the prompt {prompt!r} is not in TinyWan's language; {_GRAMMAR}")
    things = tuple(_parse_thing(words, prompt) for words in (first, *parts[1:]))
    if len({thing.colour for thing in things}) < len(things):
        raise OptionError(f"the prompt {prompt!r} has two {things[0].colour} things; {_GRAMMAR}")
    return Scene(background[1], things)


def _parse_thing(words: list[str], prompt: str) -> Thing:
    match words:
        case ["a", size, colour, shape, "stays"] if size in RADII and colour in COLOURS and shape in SHAPES:
            return Thing(size, colour, shape)
        case ["a", size, colour, shape, "moves", direction, speed] if (
            size in RADII and colour in COLOURS and shape in SHAPES and direction in DIRECTIONS and speed in SPEEDS
        ):
            return Thing(size, colour, shape, direction, speed)
    raise OptionError(f"{' '.join(words)!r} in the prompt {prompt!r} is not in TinyWan's language; {_GRAMMAR}")


def render(
    scene: Scene, starts: list[tuple[float, float]], num_frames: int = 81, size: int = FRAME, phase: float = 0.0
) -> Tensor:
    """The clip of `scene`, on PyTorch's default device.

    Args:
        scene: what to draw.
        starts: where each thing is in the first frame, (x, y) in 0..1 of the frame.
        num_frames: video frames.
        size: pixels along a side.
        phase: how far to the left stripes are moved, in periods; prompts do not say, as they do not say `starts`.

    Returns:
        ``(3, num_frames, size, size)``, values -1..1, as a VAE of Wan takes it.
    """
    scale = size / FRAME
    grid = torch.arange(size) + 0.5
    time = torch.arange(num_frames, dtype=torch.float32)
    video = _background(scene.background, size, phase)[:, None].expand(3, num_frames, size, size)
    for thing, start in reversed(list(zip(scene.things, starts, strict=True))):
        x, y = (
            _around(grid, size * begin + time * velocity * scale, size)
            for begin, velocity in zip(start, thing.velocity, strict=True)
        )
        distance = _distance(thing.shape, x[:, None, :], y[:, :, None], RADII[thing.size] * scale)
        cover = (0.5 - distance).clamp(0, 1)  # a pixel's share of the shape, near its edge
        colour = torch.tensor(COLOURS[thing.colour])[:, None, None, None]
        video = video * (1 - cover) + colour * cover
    return video * 2 - 1


def _around(grid: Tensor, centre: Tensor, size: int) -> Tensor:
    """``(F, size)``: how far each pixel is from the centre at each time, on the torus."""
    return (grid - centre[:, None] + size / 2) % size - size / 2


def _distance(shape: str, x: Tensor, y: Tensor, radius: float) -> Tensor:
    """Signed distance to the shape's edge, pixels (to the nearer axis for squares, which is close enough)."""
    if shape == "ball":
        return (x.square() + y.square()).sqrt() - radius
    if shape == "square":
        return torch.maximum(x.abs(), y.abs()) - radius
    return (x.abs() + y.abs() - radius) / 2**0.5


def _background(name: str, size: int, phase: float) -> Tensor:
    """``(3, size, size)``, values 0..1."""
    if name == "stripes":
        period = torch.arange(size) * (FRAME / size / _PERIOD) + phase
        row = torch.where(period % 1 < 0.5, 0.35, 0.65)
    else:
        row = torch.full((size,), {"black": 0.0, "grey": 0.5}[name])
    return row.expand(3, size, size)
