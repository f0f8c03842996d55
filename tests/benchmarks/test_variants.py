"""What the command line calls a variant and a clip."""

from __future__ import annotations

import pytest

import _variants
from _variants import RESIDENT, Clip, Variant, equal_steps, kept_counts, parse
from halfframe import Guidance
from halfframe.errors import HalfframeError


@pytest.mark.parametrize(
    ("text", "options", "cfg"),
    [
        ("self-duplicate", {"strategy": "self-duplicate"}, False),
        ("interleave:stride=4+cfg", {"strategy": "interleave:stride=4"}, True),
        ("interleave:stride=3,until=end", {"strategy": "interleave:stride=3,until=end"}, False),
        ("cfg", {"strategy": "none"}, True),
    ],
)
def test_variants(text: str, options: dict[str, object], cfg: bool) -> None:
    assert parse(text) == Variant(text, options, cfg)


@pytest.mark.parametrize("text", ["", "+cfg", "self-duplicate+cgf", "interleave+cfg+cfg"])
def test_no_variants(text: str) -> None:
    with pytest.raises(ValueError, match="is no variant"):
        parse(text)


@pytest.mark.parametrize("text", ["interleaf", "interleave:strode=4", "interleave:stride=0"])
def test_what_halfframe_would_refuse_is_refused_before_anything_is_built(text: str) -> None:
    with pytest.raises(HalfframeError):
        parse(text)


def test_prefetch() -> None:
    variant = parse("self-duplicate+prefetch")
    assert variant.enabling((5, 3), 20, 20) == {"strategy": "self-duplicate", "prefetch": True}
    assert parse("prefetch").enabling((5, 3), 20, 20) == {"strategy": "none", "prefetch": True}


def test_options_are_those_of_halfframes_own_command_lines() -> None:
    assert parse("interleave:stride=3,until=end+cfg").options == {"strategy": "interleave:stride=3,until=end"}


def test_what_enabled_is_given_in_a_shortened_run() -> None:
    expected = {"strategy": "interleave", "guidance": Guidance(skip_last=1, skip_last_high=1)}
    assert parse("interleave+cfg").enabling((5, 3), 20, 3) == expected
    assert parse("interleave").enabling((5, 3), 20, 3) == {"strategy": "interleave"}
    assert _variants.BASELINE.enabling((5, 3), 20, 3) is None


@pytest.mark.parametrize("text", ["49x832", "49x832x48o", "48x832x480", "49x830x480", "49x0x480"])
def test_no_clips(text: str) -> None:
    with pytest.raises(ValueError, match="clip"):
        Clip.parse(text)


def test_forwards_are_timed_for_every_number_of_frames_in_use() -> None:
    clip = Clip.parse("49x832x480")
    variants = [parse(name) for name in RESIDENT]
    assert kept_counts(clip, variants, 20, 12.0, "unipc") == [13, 7, 4]
    assert kept_counts(clip, [parse("cfg")], 20, 12.0, "unipc") == [13]


def test_fewer_steps_at_equal_cost() -> None:
    """20 steps of 4 s and 8 s of VAE: 48 s are 10 steps, though 48 of 88 s would be 11 of 20 steps."""
    assert equal_steps(48.0, 8.0, 4.0, 20) == 10
    assert equal_steps(49.9, 8.0, 4.0, 20) == 10
    assert equal_steps(50.0, 8.0, 4.0, 20) == 11
    assert equal_steps(5.0, 8.0, 4.0, 20) == 1
    assert equal_steps(87.0, 8.0, 4.0, 20) is None
