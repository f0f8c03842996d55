"""What the command line calls a variant and a clip."""

from __future__ import annotations

import pytest

from _variants import Clip, parse, shortened
from halfframe import Guidance
from halfframe.compare import Variant
from halfframe.compare.equal_cost import equal_steps
from halfframe.errors import HalfframeError

CUT = {"guidance": Guidance(skip_last=5, skip_last_high=3)}


@pytest.mark.parametrize(
    ("text", "options"),
    [
        ("self-duplicate", {"strategy": "self-duplicate"}),
        ("interleave:stride=4+cfg", {"strategy": "interleave:stride=4", **CUT}),
        ("interleave:stride=3,until=end", {"strategy": "interleave:stride=3,until=end"}),
        ("cfg", {"strategy": "none", **CUT}),
        ("self-duplicate+prefetch", {"strategy": "self-duplicate", "prefetch": True}),
        ("prefetch", {"strategy": "none", "prefetch": True}),
        ("self-duplicate+cfg+prefetch", {"strategy": "self-duplicate", **CUT, "prefetch": True}),
    ],
)
def test_variants(text: str, options: dict[str, object]) -> None:
    assert parse(text, (5, 3)) == Variant(text, options)


@pytest.mark.parametrize("text", ["", "+cfg", "self-duplicate+cgf", "interleave+cfg+cfg"])
def test_no_variants(text: str) -> None:
    with pytest.raises(ValueError, match="is no variant"):
        parse(text, (5, 3))


@pytest.mark.parametrize("text", ["interleaf", "interleave:strode=4", "interleave:stride=0"])
def test_what_halfframe_would_refuse_is_refused_before_anything_is_built(text: str) -> None:
    with pytest.raises(HalfframeError):
        parse(text, (5, 3))


def test_what_enabled_is_given_in_a_shortened_run() -> None:
    cut = {"strategy": "interleave", "guidance": Guidance(skip_last=1, skip_last_high=1)}
    assert shortened(parse("interleave+cfg", (5, 3)).options, 20, 3) == cut
    assert shortened(parse("interleave", (5, 3)).options, 20, 3) == {"strategy": "interleave"}
    assert shortened(None, 20, 3) is None


@pytest.mark.parametrize("text", ["49x832", "49x832x48o", "48x832x480", "49x830x480", "49x0x480"])
def test_no_clips(text: str) -> None:
    with pytest.raises(ValueError, match="clip"):
        Clip.parse(text)


def test_fewer_steps_at_equal_cost() -> None:
    """20 steps of 4 s and 8 s of VAE: 48 s are 10 steps, though 48 of 88 s would be 11 of 20 steps."""
    assert equal_steps(48.0, 8.0, 4.0, 20) == 10
    assert equal_steps(49.9, 8.0, 4.0, 20) == 10
    assert equal_steps(50.0, 8.0, 4.0, 20) == 11
    assert equal_steps(5.0, 8.0, 4.0, 20) == 1
    assert equal_steps(87.0, 8.0, 4.0, 20) is None
