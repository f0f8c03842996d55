"""Procedural clips whose motion is known: one or two coloured shapes over a background, described by a prompt.

What a prompt leaves open is left to chance, and is much, as in real clips: where things are, the shade of their colour,
their surface, and every detail of the background, which is a sum of many waves and, for ``waves``, on the move.

The frame is a torus: what leaves it on one side comes back on the other, so a shape keeps one velocity throughout.
Lengths are given for a frame of 64x64 pixels and grow with it.
"""

from __future__ import annotations

import math
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
BACKGROUNDS = ("stripes", "clouds", "sand", "waves")


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
    scene: Scene, starts: list[tuple[float, float]], num_frames: int = 81, size: int = FRAME, seed: int = 0
) -> Tensor:
    """The clip of `scene`, on PyTorch's default device.

    Args:
        scene: what to draw.
        starts: where each thing is in the first frame, (x, y) in 0..1 of the frame.
        num_frames: video frames.
        size: pixels along a side.
        seed: of all else that the prompt leaves open: shades, surfaces, the background's details.

    Returns:
        ``(3, num_frames, size, size)``, values -1..1, as a VAE of Wan takes it.
    """
    chance = torch.Generator("cpu").manual_seed(seed)
    scale = size / FRAME
    grid = torch.arange(size) + 0.5
    time = torch.arange(num_frames, dtype=torch.float32)
    video = _BACKGROUNDS[scene.background](chance, num_frames, size)
    for thing, start in reversed(list(zip(scene.things, starts, strict=True))):
        x, y = (
            _around(grid, size * begin + time * velocity * scale, size)
            for begin, velocity in zip(start, thing.velocity, strict=True)
        )
        x, y = x[:, None, :], y[:, :, None]
        distance = _distance(thing.shape, x, y, RADII[thing.size] * scale)
        cover = (0.5 - distance).clamp(0, 1)  # a pixel's share of the shape, near its edge
        colour = torch.tensor(COLOURS[thing.colour]) + (_uniform(chance, 3).to(x.device) - 0.5) * 0.08
        shaded = colour.clamp(0, 1)[:, None, None, None] * _surface(chance, x / scale, y / scale)
        video = video * (1 - cover) + shaded * cover
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


def _uniform(chance: torch.Generator, *shape: int) -> Tensor:
    """On the CPU, whatever the default device, so that a seed means the same everywhere."""
    return torch.rand(*shape, generator=chance, device="cpu")


def _surface(chance: torch.Generator, x: Tensor, y: Tensor) -> Tensor:
    """Brightness 0.8..1 of a thing around its centre: two waves of 8 to 16 pixels."""
    angle, length, phase = _uniform(chance, 3, 2)
    brightness = torch.tensor(0.9)
    for turn, period, start in zip(*(row.tolist() for row in (angle, length, phase)), strict=True):
        number = 2 * math.pi / (8 + 8 * period)
        across = number * (math.cos(math.pi * turn) * x + math.sin(math.pi * turn) * y)
        brightness = brightness + 0.05 * (across + 2 * math.pi * start).cos()
    return brightness


def _field(
    chance: torch.Generator,
    count: int,
    size: int,
    band: tuple[float, float],
    slope: float,
    speed: float = 0.0,
    frames: int = 1,
) -> Tensor:
    """Random fields ``(count, frames, size, size)`` of unit variance and zero mean, periodic in the frame.

    Args:
        chance: where the randomness is from.
        count: of fields.
        size: pixels along a side.
        band: from how many to how many periods along the frame.
        slope: how amplitude falls with the number of periods, as its power.
        speed: of each wave on its own, periods per frame of video at most.
        frames: of video.
    """
    most = math.floor(band[1])
    number = torch.arange(-most, most + 1, device="cpu", dtype=torch.float32)
    length = (number[:, None].square() + number.square()).sqrt()
    amplitude = torch.where((length >= band[0]) & (length <= band[1]), length.clamp(min=1) ** -slope, 0.0)
    amplitude = amplitude / (amplitude.square().sum() / 2).sqrt()  # a cosine's mean square is a half
    side = len(number)
    strength = (-2 * (1 - _uniform(chance, count, side, side)).log()).sqrt() / 2**0.5  # as of a complex normal number
    turn = _uniform(chance, count, side, side)
    pace = (2 * _uniform(chance, count, side, side) - 1) * speed
    device = torch.get_default_device()
    phase = turn[:, None] + pace[:, None] * torch.arange(frames, device="cpu", dtype=torch.float32)[:, None, None]
    waves = torch.polar((amplitude * strength)[:, None].expand_as(phase).contiguous(), 2 * math.pi * phase).to(device)
    spectrum = torch.zeros(count, frames, size, size, dtype=waves.dtype)
    places = number.long().to(device) % size
    spectrum[:, :, places[:, None], places] = waves
    field: Tensor = torch.fft.ifft2(spectrum, norm="forward").real
    return field


def _tint(chance: torch.Generator, middle: float, spread: float) -> Tensor:
    """A greyish colour, ``(3, 1, 1, 1)``."""
    colour = middle + spread * (2 * _uniform(chance, 3) - 1)
    tint: Tensor = colour.to(torch.get_default_device())[:, None, None, None]
    return tint


def _stripes(chance: torch.Generator, num_frames: int, size: int) -> Tensor:
    """Upright stripes, three to five of them, over a fine grain."""
    number, phase, contrast = map(float, _uniform(chance, 3))
    across = torch.arange(size) * ((3 + math.floor(3 * number)) / size) + phase
    row = torch.where(across % 1 < 0.5, -1.0, 1.0) * (0.08 + 0.1 * contrast)
    grain = _field(chance, 1, size, (4, 10), 0.0)
    return (_tint(chance, 0.48, 0.08) + row + 0.03 * grain).clamp(0, 1).expand(3, num_frames, size, size)


def _clouds(chance: torch.Generator, num_frames: int, size: int) -> Tensor:
    """Soft patches of brightness and of colour."""
    light = _field(chance, 1, size, (1, 6), 1.0)
    colours = _field(chance, 3, size, (1, 4), 1.0)
    return (0.48 + 0.11 * light + 0.045 * colours).clamp(0, 1).expand(3, num_frames, size, size)


def _sand(chance: torch.Generator, num_frames: int, size: int) -> Tensor:
    """Grains of five to twenty pixels."""
    light = _field(chance, 1, size, (3, 12), 0.5)
    return (_tint(chance, 0.48, 0.1) + 0.1 * light).clamp(0, 1).expand(3, num_frames, size, size)


def _waves(chance: torch.Generator, num_frames: int, size: int) -> Tensor:
    """Ripples that run through each other, each at a speed of its own."""
    light = _field(chance, 1, size, (2, 7), 0.5, speed=1 / 60, frames=num_frames)
    return (_tint(chance, 0.45, 0.08) + 0.1 * light).clamp(0, 1)


_BACKGROUNDS = {"stripes": _stripes, "clouds": _clouds, "sand": _sand, "waves": _waves}
