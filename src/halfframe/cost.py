"""What a run costs: frame-steps, tokens and FLOPs of the experts, from shapes alone.

FLOPs of one forward of a Wan DiT over N tokens, per layer, counting a multiply-add as two::

    N (12 d^2 + 4 d f + 4 L d) + 4 N^2 d

with width d, feed-forward width f and L text tokens: the projections of self- and cross-attention and the
feed-forward (linear in N), cross-attention scores (linear in N), and self-attention scores (quadratic).
"""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ["A14B", "ExpertShape"]


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
        """FLOPs of one forward that grow linearly with `tokens`."""
        per_token = 12 * self.dim**2 + 4 * self.dim * self.ffn_dim + 4 * self.text_len * self.dim
        return self.num_layers * tokens * per_token

    def attention_flops(self, tokens: int) -> int:
        """FLOPs of one forward that grow with the square of `tokens`: self-attention scores."""
        return self.num_layers * 4 * tokens**2 * self.dim

    def forward_flops(self, tokens: int) -> int:
        """FLOPs of one forward over `tokens` tokens."""
        return self.linear_flops(tokens) + self.attention_flops(tokens)


A14B = ExpertShape(dim=5120, ffn_dim=13824, num_layers=40, text_len=512)
"""Each of the two experts of Wan2.2 T2V-A14B and I2V-A14B."""
