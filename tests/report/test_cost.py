"""The FLOP formula against PyTorch's own count of a real expert's forward, and the figures of A14B."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from halfframe.errors import OptionError
from halfframe.report.cost import A14B, H200, ExpertShape, Rates
from halfframe.testing import A14B as A14B_SIZES
from halfframe.testing import TINY, WanSizes, tiny_wan_t2v

TOKENS_720P = 45 * 80  # 1280x720: latents 160 x 90, patches of 2 x 2


def forward_flops(shape: ExpertShape, tokens: int) -> int:
    return shape.linear_flops(tokens) + shape.attention_flops(tokens)


def counted_forward(sizes: WanSizes, latent_frames: int) -> tuple[int, int, ExpertShape]:
    """FLOPs of the transformer blocks and of the whole forward, as PyTorch counts them, for 4 tokens per frame."""
    expert = tiny_wan_t2v(sizes=sizes).high_noise_model
    text = torch.randn(sizes.text_len, sizes.text_dim)
    # PyTorch has no count for its fused CPU attention; the unfused one is two batched matmuls, which it has.
    with FlopCounterMode(display=False) as counter, sdpa_kernel(SDPBackend.MATH), torch.no_grad():
        expert([torch.randn(16, latent_frames, 4, 4)], t=torch.tensor([900]), context=[text], seq_len=latent_frames * 4)
    counts = {name: sum(operations.values()) for name, operations in counter.get_flop_counts().items()}
    blocks = sum(counts[f"WanModel.blocks.{layer}"] for layer in range(sizes.num_layers))
    shape = ExpertShape(expert.dim, expert.ffn_dim, expert.num_layers, expert.text_len)
    return blocks, counts["Global"], shape


@pytest.mark.parametrize(
    ("sizes", "latent_frames"),
    [
        (TINY, 5),
        (replace(TINY, num_layers=1, text_len=3), 3),
        (replace(TINY, dim=96, ffn_dim=160, num_heads=4, num_layers=3), 21),
    ],
)
def test_the_formula_is_pytorchs_count_of_the_blocks(sizes: WanSizes, latent_frames: int) -> None:
    blocks, _, shape = counted_forward(sizes, latent_frames)
    # Left out of the formula within the blocks: keys and values of the text, 2 projections of L tokens per layer. They
    # do not depend on the clip, and L = 512 of 75,600 tokens makes them 0.03 % of a forward at 720p.
    text_projections = sizes.num_layers * 2 * (2 * sizes.text_len * sizes.dim**2)
    assert forward_flops(shape, 4 * latent_frames) + text_projections == blocks


def left_out(sizes: WanSizes, tokens: int) -> int:
    """FLOPs of a forward that the formula does not count, 16 latent channels in and out, patches of 1 x 2 x 2."""
    dim = sizes.dim
    per_token = 2 * (sizes.freq_dim * dim + dim * dim + dim * 6 * dim)  # time embedding, per token upstream
    per_token += 2 * (16 * 4 * dim) + 2 * (dim * 16 * 4)  # patch embedding, head
    text = 2 * sizes.text_len * (sizes.text_dim * dim + dim * dim)  # text embedding
    text += sizes.num_layers * 2 * (2 * sizes.text_len * dim**2)  # keys and values of the text
    return tokens * per_token + text


def test_all_that_the_formula_leaves_out_of_a_forward_is_known() -> None:
    _, whole, shape = counted_forward(TINY, 5)
    assert forward_flops(shape, 20) + left_out(TINY, 20) == whole


@pytest.mark.parametrize("tokens", [13 * 30 * 52, 21 * TOKENS_720P])
def test_what_the_formula_leaves_out_of_a14b_is_little(tokens: int) -> None:
    assert left_out(A14B_SIZES, tokens) / forward_flops(A14B, tokens) < 0.015


def test_a14b_is_the_same_model_in_cost_and_testing() -> None:
    sizes = A14B_SIZES
    assert ExpertShape(sizes.dim, sizes.ffn_dim, sizes.num_layers, sizes.text_len) == A14B


# Seconds of one forward on an H200 at A14B's shapes, bf16 and PyTorch's attention: kept frames, all frames.
@pytest.mark.parametrize(
    ("latent_frames", "tokens_per_frame", "kept_seconds", "full_seconds", "arithmetic"),
    [
        (13, 30 * 52, 1.01, 2.16, 0.438),
        (21, 30 * 52, 1.73, 4.01, 0.393),
        (21, TOKENS_720P, 5.24, 14.0, 0.345),
    ],
)
def test_a_halved_forwards_share_of_a_full_one_beside_what_was_measured(
    latent_frames: int, tokens_per_frame: int, kept_seconds: float, full_seconds: float, arithmetic: float
) -> None:
    kept = (latent_frames + 1) // 2
    share = forward_flops(A14B, kept * tokens_per_frame) / forward_flops(A14B, latent_frames * tokens_per_frame)
    assert share == pytest.approx(arithmetic, abs=0.0005)
    # Arithmetic is the lower bound: norms, rotary embedding and modulation take time that grows linearly and no FLOPs
    # to speak of. The measured shares lie above it by less than a tenth, and below that of the frames.
    measured = kept_seconds / full_seconds
    assert share < measured < 1.1 * share
    assert measured < kept / latent_frames


def test_a14bs_weights_are_those_of_a_14_billion_parameter_model() -> None:
    # Two FLOPs per weight and token: without attention over tokens or text, the linear part is 2 N (weights applied).
    per_token = A14B.linear_flops(1) - A14B.num_layers * 4 * A14B.text_len * A14B.dim
    # The applied weights lack the text's keys and values, 2 d^2 per layer.
    weights = per_token / 2 + A14B.num_layers * 2 * A14B.dim**2
    assert 13.5e9 < weights < 14.5e9


def test_parts_scale_as_named() -> None:
    assert A14B.linear_flops(2000) == 2 * A14B.linear_flops(1000)
    assert A14B.attention_flops(2000) == 4 * A14B.attention_flops(1000)


@pytest.mark.parametrize(
    ("tokens", "seconds"),
    [(20280, 2.16), (10920, 1.01), (32760, 4.01), (17160, 1.73), (75600, 14.0), (39600, 5.24)],
)
def test_the_h200s_rates_give_the_forwards_that_were_measured(tokens: int, seconds: float) -> None:
    """49 and 81 frames of 832x480 and 81 of 1280x720, all latent frames and the kept ones."""
    assert A14B.seconds(tokens, H200) == pytest.approx(seconds, rel=0.01)


def test_rates_must_be_positive() -> None:
    with pytest.raises(OptionError, match="rates must be positive TFLOP/s, got 300 and 0"):
        Rates(300, 0)
