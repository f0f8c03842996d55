"""TinyWan's closed vocabulary: its tokenizer and its text encoder, as the hosts call theirs."""

from __future__ import annotations

import re
import types
from typing import Any

import torch
from torch import Tensor, nn

from halfframe.errors import OptionError
from halfframe.tinywan.clips import BACKGROUNDS, COLOURS, DIRECTIONS, RADII, SHAPES, SPEEDS

__all__ = ["TEXT_DIM", "TEXT_LEN", "TextEncoder", "Tokenizer", "WanTextEncoder"]

TEXT_LEN = 20
"""Tokens of the longest prompt, its end mark included, and a few to spare."""
TEXT_DIM = 64

_WORDS = ("a", "moves", "stays", "over", ",", *RADII, *COLOURS, *SHAPES, *DIRECTIONS, *SPEEDS, *BACKGROUNDS)
_PADDING, _END = 0, 1
_IDS = {word: number for number, word in enumerate(_WORDS, start=2)}


class Tokenizer:
    """Words to numbers, as diffusers' pipelines call a tokenizer. The empty prompt is the end mark alone."""

    def __call__(self, texts: list[str], *, max_length: int = TEXT_LEN, **_: Any) -> types.SimpleNamespace:
        """``input_ids`` and ``attention_mask``, both ``(len(texts), max_length)``, padded with zeros.

        Raises:
            OptionError: a word outside the vocabulary, or too many words.
        """
        rows = [self._row(text, max_length) for text in texts]
        ids = torch.tensor([row + [_PADDING] * (max_length - len(row)) for row in rows])
        return types.SimpleNamespace(input_ids=ids, attention_mask=ids.ne(_PADDING).long())

    def _row(self, text: str, max_length: int) -> list[int]:
        words = re.findall(r"\w+|,", text.lower())
        unknown = sorted({word for word in words if word not in _IDS})
        if unknown:
            raise OptionError(
                f"the prompt {text!r} has words that TinyWan does not know: {', '.join(unknown)}; it knows "
                f"{' '.join(_WORDS)}"
            )
        longest = min(max_length, TEXT_LEN)
        if len(words) >= longest:
            raise OptionError(f"the prompt {text!r} has {len(words)} words; TinyWan takes {longest - 1} at most.")
        return [*(_IDS[word] for word in words), _END]


class TextEncoder(nn.Module):
    """A two-layer transformer over the vocabulary; diffusers' pipelines call it as they call UMT5.

    It is trained together with the experts.
    """

    def __init__(self, dim: int = TEXT_DIM, num_layers: int = 2) -> None:
        super().__init__()
        self.words = nn.Embedding(len(_WORDS) + 2, dim)
        self.positions = nn.Parameter(torch.randn(TEXT_LEN, dim) * 0.5)
        layer = nn.TransformerEncoderLayer(dim, 4, 2 * dim, dropout=0.0, batch_first=True, norm_first=True)
        self.layers = nn.TransformerEncoder(layer, num_layers, nn.LayerNorm(dim), enable_nested_tensor=False)

    @property
    def device(self) -> torch.device:
        """Where it is."""
        return self.positions.device

    @property
    def dtype(self) -> torch.dtype:
        """What it returns."""
        return self.positions.dtype

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> types.SimpleNamespace:
        """``last_hidden_state`` ``(B, L, TEXT_DIM)``, zero where `attention_mask` ``(B, L)`` is."""
        length = min(input_ids.shape[1], TEXT_LEN)
        ids, mask = input_ids[:, :length], attention_mask[:, :length].bool()
        hidden = self.layers(self.words(ids) + self.positions[:length], src_key_padding_mask=~mask)
        hidden = hidden * mask[..., None]
        padding = hidden.new_zeros(hidden.shape[0], input_ids.shape[1] - length, hidden.shape[2])
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
