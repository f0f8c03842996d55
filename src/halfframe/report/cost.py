"""What a forward pass of an expert costs, from shapes alone.

FLOPs of one forward pass of a Wan DiT over N tokens, per layer, counting a multiply-add as two::

    N (12 d^2 + 4 d f + 4 L d) + 4 N^2 d

with width d, feed-forward width f and L text tokens: the projections of self- and cross-attention and the
feed-forward (linear in N), cross-attention scores (linear in N), and self-attention scores (quadratic).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from halfframe.errors import OptionError

__all__ = ["A14B", "H200", "Expert", "ExpertShape", "Rates"]

Expert = Literal["high", "low"]
"""The high-noise or the low-noise expert."""


@dataclass(frozen=True, slots=True)
class ExpertShape:
    """The sizes of an expert that its cost depends on.

    Attributes:
        dim: width d.
        ffn_dim: feed-forward width f.
        num_layers: transformer blocks.
        text_len: text tokens L that cross-attention sees.
    """

    dim: int
    ffn_dim: int
    num_layers: int
    text_len: int = 512

    def linear_flops(self, tokens: int) -> int:
        """FLOPs of one forward pass that grow linearly with `tokens`."""
        per_token = 12 * self.dim**2 + 4 * self.dim * self.ffn_dim + 4 * self.text_len * self.dim
        return self.num_layers * tokens * per_token

    def attention_flops(self, tokens: int) -> int:
        """FLOPs of one forward pass that grow with the square of `tokens`: self-attention scores."""
        return self.num_layers * 4 * tokens**2 * self.dim

    def seconds(self, tokens: int, rates: Rates) -> float:
        """Time of one forward pass over `tokens` tokens at the `rates` of a machine."""
        linear, attention = self.linear_flops(tokens), self.attention_flops(tokens)
        return linear / (rates.linear * 1e12) + attention / (rates.attention * 1e12)


A14B = ExpertShape(dim=5120, ffn_dim=13824, num_layers=40, text_len=512)
"""Each of the two experts of Wan2.2 T2V-A14B and I2V-A14B."""


@dataclass(frozen=True, slots=True)
class Rates:
    """What a machine sustains, 1e12 operations per second, apart for the two kinds of terms.

    They differ: beside its matrix products, a block has norms, modulation and rotations that cost time per token and
    hardly any arithmetic, so the linear terms are slower than their FLOPs say.

    Attributes:
        linear: for the terms that grow with the tokens.
        attention: for those that grow with their square.
    """

    linear: float
    attention: float

    def __post_init__(self) -> None:
        if not (self.linear > 0 and self.attention > 0):
            raise OptionError(f"rates must be positive TFLOP/s, got {self.linear} and {self.attention}.")


H200 = Rates(linear=317.0, attention=577.0)
"""One H200, bf16, PyTorch's SDPA: fitted to six forward passes of A14B's sizes, random weights, 10920 to 75600 tokens.

It is within 1 % of each of the six, where a single rate would be 10 % off.
"""
