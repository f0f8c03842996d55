"""TinyWan's closed language: scenes, prompts, and the tokenizer and text encoder that both hosts call."""

from __future__ import annotations

import random
import re
import types
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from halfframe.errors import OptionError

__all__ = [
    "COLOURS",
    "GROUNDS",
    "SHAPES",
    "SIZES",
    "TEXT_DIM",
    "TEXT_LEN",
    "Scene",
    "TextEncoder",
    "Thing",
    "Tokenizer",
    "WanTextEncoder",
    "held_out_prompts",
    "parse_prompt",
    "random_scene",
]

Rgb = tuple[float, float, float]

COLOURS: dict[str, Rgb] = {
    "red": (0.95, 0.05, 0.05),
    "green": (0.05, 0.85, 0.1),
    "blue": (0.1, 0.2, 1.0),
    "yellow": (1.0, 0.9, 0.0),
}
"""Of things."""

SHAPES = ("ball", "square", "diamond")

SIZES = {"small": 10.0, "big": 16.0}
"""Half the width of a thing, pixels."""

GROUNDS: dict[str, tuple[Rgb, Rgb]] = {
    "chess": ((0.03, 0.03, 0.03), (0.97, 0.97, 0.97)),
    "ice": ((0.28, 0.46, 0.62), (0.88, 0.96, 1.0)),
    "brick": ((0.24, 0.1, 0.08), (0.8, 0.55, 0.46)),
    "moss": ((0.08, 0.2, 0.08), (0.68, 0.78, 0.52)),
    "sand": ((0.48, 0.34, 0.18), (1.0, 0.93, 0.74)),
    "slate": ((0.08, 0.1, 0.2), (0.56, 0.62, 0.76)),
    "plum": ((0.24, 0.06, 0.26), (0.8, 0.62, 0.82)),
    "jade": ((0.0, 0.22, 0.24), (0.5, 0.84, 0.8)),
}
"""Dark and light tone of the tiles."""


@dataclass(frozen=True, slots=True)
class Thing:
    """A shape that a prompt names."""

    size: str
    colour: str
    shape: str

    def __str__(self) -> str:
        return f"a {self.size} {self.colour} {self.shape}"


@dataclass(frozen=True, slots=True)
class Scene:
    """All that a prompt says: one or two things, the first in front, and the ground. ``str(scene)`` is the prompt."""

    things: tuple[Thing, ...]
    ground: str

    def __str__(self) -> str:
        return f"{' and '.join(map(str, self.things))} over {self.ground}"


_THING = f"a ({'|'.join(SIZES)}) ({'|'.join(COLOURS)}) ({'|'.join(SHAPES)})"
_PROMPT = re.compile(f"{_THING}(?: and {_THING})? over ({'|'.join(GROUNDS)})")
_GRAMMAR = (
    'needed: "a SIZE COLOUR SHAPE over GROUND" or "a SIZE COLOUR SHAPE and a SIZE COLOUR SHAPE over GROUND" with two '
    f"colours; sizes: {', '.join(SIZES)}; colours: {', '.join(COLOURS)}; shapes: {', '.join(SHAPES)}; grounds: "
    f"{', '.join(GROUNDS)}."
)


def parse_prompt(prompt: str) -> Scene:
    """The scene that `prompt` describes.

    Raises:
        OptionError: the prompt is outside the closed language.
    """
    match = _PROMPT.fullmatch(" ".join(prompt.lower().rstrip(". ").split()))
    if match is None:
        raise OptionError(f"the prompt {prompt!r} is not in TinyWan's language; {_GRAMMAR}")
    *words, ground = match.groups()
    things = tuple(Thing(*words[start : start + 3]) for start in (0, 3) if words[start])
    if len({thing.colour for thing in things}) < len(things):
        raise OptionError(f"the prompt {prompt!r} has two {things[0].colour} things; {_GRAMMAR}")
    return Scene(things, ground)


def random_scene(rng: random.Random) -> Scene:
    """One or two things of different colours, everything uniform."""
    colours = rng.sample(sorted(COLOURS), rng.choice((1, 2)))
    things = tuple(Thing(rng.choice(sorted(SIZES)), colour, rng.choice(SHAPES)) for colour in colours)
    return Scene(things, rng.choice(sorted(GROUNDS)))


def held_out_prompts(count: int) -> list[str]:
    """Prompts for measuring, always the same. Use seeds from 1,000,000: training draws its worlds below."""
    rng = random.Random("held out")
    return [str(random_scene(rng)) for _ in range(count)]


TEXT_LEN = 16
"""Tokens that the experts read; the longest prompt has 12 with its end mark."""
TEXT_DIM = 64

_WORDS = ("a", "and", "over", *SIZES, *COLOURS, *SHAPES, *GROUNDS)
_PADDING, _END = 0, 1
_IDS = {word: number for number, word in enumerate(_WORDS, start=2)}


class Tokenizer:
    """Words to numbers, as diffusers' pipelines call a tokenizer. The empty prompt is the end mark alone."""

    def __call__(self, texts: list[str], *, max_length: int = TEXT_LEN, **_: Any) -> types.SimpleNamespace:
        """``input_ids`` and ``attention_mask``, both ``(len(texts), max_length)``, padded with zeros.

        Raises:
            OptionError: a word outside the vocabulary, or too many words.
        """
        rows = [self._row(text, min(max_length, TEXT_LEN)) for text in texts]
        ids = torch.tensor([row + [_PADDING] * (max_length - len(row)) for row in rows])
        return types.SimpleNamespace(input_ids=ids, attention_mask=ids.ne(_PADDING).long())

    def _row(self, text: str, longest: int) -> list[int]:
        words = re.findall(r"\w+", text.lower())
        unknown = sorted({word for word in words if word not in _IDS})
        if unknown:
            raise OptionError(
                f"the prompt {text!r} has words that TinyWan does not know: {', '.join(unknown)}; it knows: "
                f"{', '.join(_WORDS)}."
            )
        if len(words) >= longest:
            raise OptionError(f"the prompt {text!r} has {len(words)} words; TinyWan takes {longest - 1} at most.")
        return [*(_IDS[word] for word in words), _END]


class TextEncoder(nn.Module):
    """Fixed random codes of words and positions: frozen, as Wan's UMT5 is, and all that a fixed grammar needs."""

    def __init__(self) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(0)
        self.words = nn.Parameter(torch.randn(len(_WORDS) + 2, TEXT_DIM, generator=generator), requires_grad=False)
        self.positions = nn.Parameter(torch.randn(TEXT_LEN, TEXT_DIM, generator=generator), requires_grad=False)

    @property
    def device(self) -> torch.device:
        """Where it is."""
        return self.words.device

    @property
    def dtype(self) -> torch.dtype:
        """What it returns."""
        return self.words.dtype

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> types.SimpleNamespace:
        """``last_hidden_state`` ``(B, L, TEXT_DIM)``, zero where `attention_mask` ``(B, L)`` is."""
        length = min(input_ids.shape[1], TEXT_LEN)
        hidden = (self.words[input_ids[:, :length]] + self.positions[:length]) * attention_mask[:, :length, None]
        padding = hidden.new_zeros(hidden.shape[0], input_ids.shape[1] - length, TEXT_DIM)
        return types.SimpleNamespace(last_hidden_state=torch.cat([hidden, padding], dim=1))


class WanTextEncoder:
    """The same as the official package calls it: texts and a device in, one ``(tokens, TEXT_DIM)`` per text out."""

    def __init__(self, model: TextEncoder) -> None:
        self.model = model
        self._tokenize = Tokenizer()

    @torch.no_grad()
    def __call__(self, texts: list[str], device: torch.device) -> list[Tensor]:
        tokens = self._tokenize(texts)
        ids, mask = tokens.input_ids.to(self.model.device), tokens.attention_mask.to(self.model.device)
        hidden = self.model(ids, mask).last_hidden_state
        return [row[: int(count)].to(device) for row, count in zip(hidden, mask.sum(dim=1), strict=True)]
