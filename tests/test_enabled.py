"""`enabled`, `enable`, `disable`: what they take, refuse and say."""

from __future__ import annotations

from typing import Any

import pytest

import halfframe
from halfframe import HalfframeError, HalfframeWarning, OptionError, StrategyError
from halfframe.testing import tiny_wan_t2v

CLIP: dict[str, Any] = {"size": (32, 32), "frame_num": 17, "sampling_steps": 4, "shift": 12.0, "offload_model": False}


@pytest.fixture
def pipe() -> Any:
    return tiny_wan_t2v()


def test_what_is_never_entered_warns(pipe: Any) -> None:
    with pytest.warns(HalfframeWarning, match=r"enabled\(WanT2V\) was never entered, so nothing was made faster"):
        halfframe.enabled(pipe)


def test_an_object_serves_one_block(pipe: Any) -> None:
    block = halfframe.enabled(pipe)
    with block, pytest.raises(HalfframeError, match="was entered before and serves one block; call"), block:
        pass
    with pytest.raises(HalfframeError, match="was entered before"), block:
        pass
    with halfframe.enabled(pipe):
        pass


def test_on_and_off_without_a_block(pipe: Any) -> None:
    before = dict(vars(pipe)), type(pipe)
    with pytest.raises(HalfframeError, match="halfframe is not on for this WanT2V; there is nothing to switch off"):
        halfframe.disable(pipe)
    handle = halfframe.enable(pipe, "interleave", stride=3)
    with pytest.raises(HalfframeError, match="this WanT2V is enabled already"):
        halfframe.enable(pipe)
    with pytest.raises(HalfframeError, match="was entered before"), handle:
        pass
    pipe.generate("a kite", seed=1, **CLIP)
    assert handle.report is not None
    assert handle.report.moves == ("interleave:3",) * 3 + ("full",)
    halfframe.disable(pipe)
    assert (dict(vars(pipe)), type(pipe)) == before
    pipe.generate("a kite", seed=1, **CLIP)
    assert len(handle.reports) == 1


def test_a_block_switches_itself_off(pipe: Any) -> None:
    with halfframe.enabled(pipe), pytest.raises(HalfframeError, match=r"a `with .*` block holds this WanT2V; leave"):
        halfframe.disable(pipe)


def test_printing_says_what_it_is_and_what_it_did(pipe: Any) -> None:
    with halfframe.enabled(pipe, halfframe.Merge(stride=3), guidance=halfframe.Guidance(skip_last=1)) as run:
        assert "halfframe is on for a WanT2V (wan): merge:stride=3, Guidance(skip_last=1" in str(run)
        assert "0 runs finished" in str(run)
        pipe.generate("a kite", seed=1, **CLIP)
    text = str(run)
    assert "off again" in text
    assert "1 run finished" in text
    assert "moves: 3 x merge:3, full+cond" in text


@pytest.mark.parametrize(
    ("strategy", "options", "error", "message"),
    [
        ("interleav", {}, StrategyError, r"no strategy is called 'interleav'.* Did you mean 'interleave'\?"),
        ("Merge", {}, StrategyError, r"Did you mean 'merge'\?"),
        ("self_duplicate", {}, StrategyError, r"Did you mean 'self-duplicate'\?"),
        ("merge", {"strid": 3}, OptionError, r"Did you mean 'stride'\?"),
        ("merge", {"measur": True}, OptionError, r"Did you mean 'measure'\?"),
        ("merge", {"cfg_truncate_steps": 5}, OptionError, r"guidance=halfframe\.Guidance\(skip_last=N"),
        ("merge:stride=3", {"stride": 2}, OptionError, "stride is given twice"),
        ("merge", {"guidance": 5}, OptionError, r"guidance must be a halfframe\.Guidance, got 5"),
        ("merge", {"measure": "no"}, OptionError, "measure must be True or False, got 'no'"),
        (halfframe.Merge(), {"stride": 3}, OptionError, "was given as an instance"),
    ],
)
def test_mistakes_are_told(pipe: Any, strategy: Any, options: dict[str, Any], error: Any, message: str) -> None:
    with pytest.raises(error, match=message):
        halfframe.enabled(pipe, strategy, **options)


@pytest.mark.parametrize(
    ("strategy", "options", "shown"),
    [
        ("interleave:stride=3,full_start=1", {}, "interleave:stride=3,full_start=1"),
        ("interleave:stride=3", {"full_start": 1}, "interleave:stride=3,full_start=1"),
        (halfframe.Interleave, {"stride": 3}, "interleave:stride=3"),
        (halfframe.Interleave(stride=3), {}, "interleave:stride=3"),
        (halfframe.SelfDuplicate(noise="short"), {}, "self-duplicate:noise=short"),
        ("self-duplicate:noise=short", {}, "self-duplicate:noise=short"),
        (lambda x, n: x.repeat_interleave(2, -3)[..., :n, :, :], {"noise": "short"}, "<lambda>:noise=short"),
    ],
)
def test_ways_to_name_a_strategy(pipe: Any, strategy: Any, options: dict[str, Any], shown: str) -> None:
    with halfframe.enabled(pipe, strategy, **options) as run:
        pipe.generate("a kite", seed=1, **CLIP)
    assert run.report is not None
    assert run.report.strategy == shown
