"""The two built-in expansions against each other and a plain loop, and what the base classes promise."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from halfframe import Allocation, Expansion, FrameMap, HalfframeError, Step, Strategy
from halfframe.strategies.expansion import previous_odd, self_duplicate

BUILT_IN = pytest.mark.parametrize("expand", [self_duplicate, previous_odd])
Expand = Callable[[Tensor, int], Tensor]


def loop(latents: Tensor, num_frames: int) -> Tensor:
    """Every frame twice, until there are enough: the source's picture F1, F1, F2, F2, ... as a loop over positions."""
    out: list[Tensor] = []
    for position in range(latents.shape[-3]):
        for _ in range(2):
            if len(out) < num_frames:
                out.append(latents[..., position, :, :])
    return torch.stack(out, dim=-3)


def step(num_frames: int, expert: str = "high", index: int = 0) -> Step:
    return Step(
        index=index,
        num_steps=20,
        timestep=900.0,
        sigma=0.9,
        expert=expert,  # type: ignore[arg-type]
        expert_index=index,
        expert_steps=13,
        num_frames=num_frames,
    )


@BUILT_IN
@pytest.mark.parametrize("num_frames", range(1, 65))
def test_expansion_is_the_plain_loop_at_every_length(expand: Expand, num_frames: int) -> None:
    latents = torch.randn(3, (num_frames + 1) // 2, 2, 2)
    result = expand(latents, num_frames)
    assert result.shape == (3, num_frames, 2, 2)
    assert torch.equal(result, loop(latents, num_frames))
    assert result.is_contiguous()


@BUILT_IN
@pytest.mark.parametrize("num_frames", [48, 49])
def test_the_sources_rows_48_24_48_and_49_25_49(expand: Expand, num_frames: int) -> None:
    latents = torch.randn((num_frames + 1) // 2, 1, 1)
    assert expand(latents, num_frames).shape[0] == num_frames


@BUILT_IN
@pytest.mark.parametrize("leading", [(), (4,), (2, 4), (2, 1, 4)])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
@pytest.mark.parametrize("num_frames", [12, 13])
def test_leading_dims_and_dtypes(expand: Expand, leading: tuple[int, ...], dtype: torch.dtype, num_frames: int) -> None:
    latents = torch.randn(*leading, (num_frames + 1) // 2, 2, 3).to(dtype)
    result = expand(latents, num_frames)
    assert result.dtype == dtype
    assert torch.equal(result, loop(latents, num_frames))


@BUILT_IN
def test_a_batch_is_expanded_as_its_members_are(expand: Expand) -> None:
    batch = torch.randn(3, 4, 7, 2, 2)
    assert torch.equal(expand(batch, 13), torch.stack([expand(member, 13) for member in batch]))


@BUILT_IN
def test_strided_latents_give_contiguous_ones(expand: Expand) -> None:
    latents = torch.randn(2, 2, 7, 3).permute(0, 2, 1, 3)
    assert not latents.is_contiguous()
    result = expand(latents, 13)
    assert result.is_contiguous()
    assert torch.equal(result, loop(latents, 13))


@BUILT_IN
@pytest.mark.parametrize("num_frames", [5, 6])
def test_gradients_flow(expand: Expand, num_frames: int) -> None:
    latents = torch.randn(2, 3, 1, 2, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda x: expand(x, num_frames), (latents,))


@BUILT_IN
def test_a_frames_gradient_is_the_sum_over_its_copies(expand: Expand) -> None:
    latents = torch.zeros(3, 1, 1, requires_grad=True)
    weights = torch.tensor([1.0, 2, 4, 8, 16]).reshape(5, 1, 1)
    (expand(latents, 5) * weights).sum().backward()
    assert latents.grad is not None
    assert latents.grad.flatten().tolist() == [3, 12, 16]


@BUILT_IN
@pytest.mark.parametrize("num_frames", [2, 3])
def test_writing_to_the_result_changes_neither_the_latents_nor_a_twin(expand: Expand, num_frames: int) -> None:
    latents = torch.zeros((num_frames + 1) // 2, 1, 1)
    result = expand(latents, num_frames)
    result[0] = 1
    assert not latents.any()
    assert not result[1:].any()


@BUILT_IN
def test_the_wrong_number_of_frames_is_refused_with_what_is_needed(expand: Expand) -> None:
    message = r"13 frames are expanded from 7 kept ones, but latents of shape \(4, 6, 2, 2\) have 6 at dim -3"
    with pytest.raises(HalfframeError, match=message):
        expand(torch.zeros(4, 6, 2, 2), 13)


# The base classes.


def allocation(shape: tuple[int, ...], seed: int = 0) -> Allocation:
    generator = torch.Generator().manual_seed(seed)
    return Allocation(
        shape=shape,
        dtype=torch.float32,
        device=torch.device("cpu"),
        draw=lambda size: torch.randn(size, generator=generator),
    )


def test_a_bare_strategy_computes_everything_and_draws_what_the_host_would() -> None:
    bare = Strategy()
    assert bare.move(step(13)) is None
    host = torch.randn(4, 13, 2, 2, generator=torch.Generator().manual_seed(3))
    assert torch.equal(bare.allocate(allocation((4, 13, 2, 2), seed=3)), host)
    assert bare.at_switch(host) is host


def test_an_expansion_halves_the_high_noise_expert_only() -> None:
    strategy = Expansion(self_duplicate)
    move = strategy.move(step(13, "high"))
    assert isinstance(move, FrameMap)
    assert move.kept == (0, 2, 4, 6, 8, 10, 12)
    assert move.positions == (0, 1, 2, 3, 4, 5, 6)
    assert strategy.move(step(13, "low")) is None


@pytest.mark.parametrize("num_frames", [1, 2, 12, 13])
def test_kept_frames_get_the_full_draws_noise(num_frames: int) -> None:
    shape = (4, num_frames, 2, 2)
    host = torch.randn(shape, generator=torch.Generator().manual_seed(7))
    latents = Expansion(self_duplicate, "any").allocate(allocation(shape, seed=7))
    for position in range(num_frames):
        assert torch.equal(latents[:, position], host[:, position - position % 2])


def test_short_noise_is_a_draw_of_the_kept_length_as_the_source_has_it() -> None:
    latents = Expansion(self_duplicate, "any", "short").allocate(allocation((4, 13, 2, 2), seed=7))
    short = torch.randn(4, 7, 2, 2, generator=torch.Generator().manual_seed(7))
    assert torch.equal(latents, loop(short, 13))


def test_the_switch_hands_the_kept_frames_to_the_function() -> None:
    seen: list[tuple[Tensor, int]] = []

    def expand(latents: Tensor, num_frames: int) -> Tensor:
        seen.append((latents, num_frames))
        return loop(latents, num_frames)

    clip = torch.randn(2, 4, 13, 2, 2)
    result = Expansion(expand, "mine").at_switch(clip)
    assert torch.equal(seen[0][0], clip[..., ::2, :, :])
    assert seen[0][1] == 13
    assert torch.equal(result, loop(clip[..., ::2, :, :], 13))


@pytest.mark.parametrize("strategy", [self_duplicate, previous_odd])
@pytest.mark.parametrize("num_frames", [1, 2, 5])
def test_the_result_shares_no_memory_with_the_input(strategy: Any, num_frames: int) -> None:
    kept = torch.zeros(1, (num_frames + 1) // 2, 1, 1)
    strategy(kept, num_frames).add_(1)
    assert not kept.any()
