"""What a cache costs: what of each transformer block was computed, by its share of a block's time at A14B's sizes."""

from __future__ import annotations

import functools
from collections import defaultdict
from typing import Any

from halfframe.report.cost import A14B, H200

__all__ = ["Counter"]

_LAYERS = 40
"""Transformer blocks of an expert of A14B: a cache that always computes its first block spends a fortieth there."""
_TOKENS = 75_600
"""Of 81 frames of 1280x720."""


@functools.cache
def shares() -> dict[str, float]:
    """Of a block's time at A14B's sizes: self-attention, cross-attention and feed-forward."""
    d, f, length = A14B.dim, A14B.ffn_dim, A14B.text_len
    seconds = {
        "attn1": _TOKENS * 8 * d * d / H200.linear + 4 * _TOKENS**2 * d / H200.attention,
        "attn2": _TOKENS * (4 * d * d + 4 * length * d) / H200.linear,
        "ffn": _TOKENS * 4 * d * f / H200.linear,
    }
    total = sum(seconds.values())
    return {name: value / total for name, value in seconds.items()}


class Counter:
    """Counts what of each block is computed, by the last linear layer of each part, which no cache replaces."""

    def __init__(self, pipe: Any) -> None:
        self._experts = (pipe.transformer, pipe.transformer_2)
        self._layers = len(pipe.transformer.blocks)
        self._calls: dict[tuple[str, int], int] = defaultdict(int)
        self._handles: list[Any] = []

    def __enter__(self) -> Counter:
        for expert in self._experts:
            blocks = {id(block): block for block in expert.modules() if type(block).__name__ == "WanTransformerBlock"}
            if len(blocks) != self._layers:
                raise RuntimeError(f"{len(blocks)} blocks were found; needed: {self._layers}")
            for layer, block in enumerate(blocks.values()):
                parts = {"attn1": block.attn1.to_out[0], "attn2": block.attn2.to_out[0], "ffn": block.ffn.net[2]}
                for name, module in parts.items():
                    self._handles.append(module.register_forward_hook(functools.partial(self._count, (name, layer))))
        return self

    def __exit__(self, *_: object) -> None:
        for handle in self._handles:
            handle.remove()

    def _count(self, key: tuple[str, int], *_: object) -> None:
        self._calls[key] += 1

    def cost(self, passes: int) -> tuple[float, float]:
        """Cost in full steps, of `passes` forward passes a step: as of 40 blocks, and of as many as there are.

        What all blocks computed was computed by all of 40. What only some computed, a first block that decides, is
        computed by as many of 40.
        """
        whole = own = 0.0
        for name, share in shares().items():
            calls = [self._calls[name, layer] for layer in range(self._layers)]
            common = min(calls)
            whole += share * (common + sum(count - common for count in calls) / _LAYERS)
            own += share * sum(calls) / self._layers
        return whole / passes, own / passes
