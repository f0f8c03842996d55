"""Which steps go without the unconditional pass, and what stands in for it."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from halfframe.errors import OptionError
from halfframe.sampling.guidance import Delta, Guidance, GuidanceRule, GuidanceState
from halfframe.sampling.strategy import Step


def steps(high: int, low: int) -> list[Step]:
    """A schedule of `high` high-noise steps and `low` low-noise ones."""
    return [
        Step(
            index=i,
            num_steps=high + low,
            timestep=1000.0 - i,
            sigma=1 - i / (high + low),
            expert="high" if i < high else "low",
            expert_index=i if i < high else i - high,
            expert_steps=high if i < high else low,
            num_frames=5,
        )
        for i in range(high + low)
    ]


def test_the_source_recommends_five_and_three() -> None:
    covered = [step.index for step in steps(13, 7) if Guidance(5, 3).at(step) != "both"]
    assert covered == [10, 11, 12, 15, 16, 17, 18, 19]


@given(st.integers(0, 12), st.integers(0, 12), st.integers(0, 30), st.integers(0, 30))
def test_counts_are_clipped_to_the_schedule(high: int, low: int, last: int, last_high: int) -> None:
    schedule = steps(high, low)
    covered = {step.index for step in schedule if Guidance(last, last_high).at(step) != "both"}
    order = list(range(high + low))
    assert covered == set(order[len(order) - min(last, len(order)) :]) | set(
        order[:high][high - min(last_high, high) :]
    )


def test_nothing_stands_in_unless_asked() -> None:
    state = GuidanceState(Guidance())
    [first, *_] = steps(2, 2)
    state.see(first, 0, torch.ones(1))
    assert state.stand_in(first, 1) is None
    assert not Guidance()


@pytest.mark.parametrize("scale", [1.0, 3.0, 5.5])
def test_what_the_hosts_formula_makes_of_the_stand_in(scale: float) -> None:
    cond, uncond, later = torch.randn(3, 16, 3, 4, 6).unbind()
    first, second, third, _ = steps(2, 2)
    for mode, expected in (("conditional", later), ("delta", later + (scale - 1) * (cond - uncond))):
        state = GuidanceState(Guidance(3, 1, mode=mode))  # type: ignore[arg-type]
        state.see(first, 0, cond)
        assert state.stand_in(first, 1) is None
        state.see(first, 1, uncond)
        state.see(second, 0, later)
        stand_in = state.stand_in(second, 1)
        assert stand_in is not None
        torch.testing.assert_close(stand_in + scale * (later - stand_in), expected, rtol=1e-5, atol=1e-5)
        # The other expert has no difference of its own yet.
        state.see(third, 0, later)
        stand_in = state.stand_in(third, 1)
        assert stand_in is not None
        assert torch.equal(stand_in, later)


@given(st.integers(0, 12), st.integers(0, 12), st.integers(1, 14), st.integers(0, 5), st.integers(0, 5))
def test_every_nth_step_of_each_expert_has_both_passs(
    high: int, low: int, every: int, last: int, last_high: int
) -> None:
    truncation = Guidance(last, last_high, every=every)
    truncated = {step.index for step in steps(high, low) if Guidance(last, last_high).at(step) != "both"}
    anew = {*range(0, high, every), *range(high, high + low, every)}
    covered = {step.index for step in steps(high, low) if truncation.at(step) != "both"}
    assert covered == truncated | (set(range(high + low)) - anew)
    assert {step.index for step in steps(high, low) if truncation.at(step) == "conditional"} == truncated
    assert bool(truncation) == (every > 1 or last > 0 or last_high > 0)


@pytest.mark.parametrize("mode", ["conditional", "delta"])
def test_the_difference_stands_in_between_whatever_the_mode(mode: Any) -> None:
    cond, uncond, later, last = torch.randn(4, 16, 3, 4, 6).unbind()
    state = GuidanceState(Guidance(0, 1, mode=mode, every=3))
    first, second, third, low, *_ = steps(3, 2)
    state.see(first, 0, cond)
    assert state.stand_in(first, 1) is None
    state.see(first, 1, uncond)
    state.see(second, 0, later)
    between = state.stand_in(second, 1)
    assert between is not None
    torch.testing.assert_close(later - between, cond - uncond)
    state.see(third, 0, last)
    truncated = state.stand_in(third, 1)
    assert truncated is not None
    torch.testing.assert_close(last - truncated, cond - uncond if mode == "delta" else torch.zeros_like(cond))
    # The other expert's first step computes its own.
    state.see(low, 0, later)
    assert state.stand_in(low, 1) is None


def test_without_a_difference_the_pass_is_made() -> None:
    """As where a host began without guidance and has it from the second step on."""
    state = GuidanceState(Guidance(every=2))
    first, second, *_ = steps(4, 2)
    state.see(first, 0, torch.ones(1))
    state.see(second, 0, torch.ones(1))
    assert state.stand_in(second, 1) is None


class Rules:
    """A rule for each step."""

    def __init__(self, *rules: GuidanceRule) -> None:
        self.rules = rules

    def at(self, step: Step) -> GuidanceRule:
        return self.rules[step.index]


@given(st.integers(1, 4), st.sampled_from(["conditional", "both"]), st.data())
def test_a_difference_is_the_weighted_sum_of_the_last_ones_latest_first(
    count: int, otherwise: Any, data: st.DataObject
) -> None:
    """Of steps that computed both passes, and of the same expert; stand-ins and reuses are not among them."""
    weights = tuple(data.draw(st.lists(st.floats(-3, 3), min_size=count, max_size=count)))
    kinds = data.draw(st.lists(st.sampled_from(["both", "both", "delta", "reused", "conditional"]), max_size=9))
    schedule = steps(len(kinds) - len(kinds) // 3, len(kinds) // 3 + 1)
    asked: dict[str, GuidanceRule] = {"delta": Delta(weights, otherwise), "conditional": "conditional"}
    state = GuidanceState(Rules(*(asked.get(kind, "both") for kind in kinds), asked["delta"]))
    known: list[float] = []
    for step, kind in zip(schedule, [*kinds, "delta"], strict=True):
        if step.expert == "low" and step.expert_index == 0:
            known.clear()
        cond, uncond = torch.tensor(10.0 * step.index), torch.tensor(float(step.index**2))
        rule = state.rule(step)
        state.see(step, 0, cond, computed=kind != "reused")
        assert rule == state.rule(step)
        if kind == "delta":
            assert rule == (asked["delta"] if len(known) >= count else otherwise)
        if rule == "both":
            state.see(step, 1, uncond, computed=kind != "reused")
            known += [] if kind == "reused" else [float(cond - uncond)]
            continue
        stand_in = state.stand_in(step, 1)
        assert stand_in is not None
        if rule == "conditional":
            assert (stand_in, state.label) == (cond, "+cond")
        else:
            difference = sum(weight * one for weight, one in zip(weights, known[::-1], strict=False))
            assert float(stand_in) == pytest.approx(float(cond) - difference, abs=1e-3)
            assert state.label.startswith("+delta")


def test_guidance_is_seen_in_the_hosts_dtype() -> None:
    state = GuidanceState(Rules("both", Delta((1.5,))))
    first, second = steps(2, 0)
    for number, value in enumerate((3.0, 1.0)):
        state.see(first, number, torch.tensor(value, dtype=torch.bfloat16))
    state.see(second, 0, torch.tensor(8.0, dtype=torch.bfloat16))
    stand_in = state.stand_in(second, 1)
    assert stand_in is not None
    assert (stand_in.dtype, float(stand_in)) == (torch.bfloat16, 5.0)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((-1, 0), "Guidance: skip_last must be an integer >= 0, got -1"),
        ((0, 2.5), "skip_last_high must be an integer >= 0, got 2.5"),
        ((True, 0), "skip_last must be an integer >= 0, got True"),
        ((0, 0, 0), "every must be an integer >= 1, got 0"),
        ((0, 0, -2), "every must be an integer >= 1, got -2"),
        ((0, 0, True), "every must be an integer >= 1, got True"),
        ((0, 0, 2.0), "every must be an integer >= 1, got 2.0"),
        ((1, 0, 1, "half"), "mode must be 'conditional' or 'delta', got 'half'"),
    ],
)
def test_unusable_values(arguments: Any, message: str) -> None:
    with pytest.raises(OptionError, match=message):
        Guidance(*arguments)
