"""The oldest and the newest version of each host beside the usual one; `compatibility.py` runs them all."""

from __future__ import annotations

import pytest

from .compatibility import HOSTS, VERSIONS, run

# What tells most in least time; the whole files run in compatibility.py.
SELECTED = {
    "wan22": "(reference_loop and (17 or 21) and self-duplicate) or fork or every_version or zero_is",
    "diffusers": "reference or shapes or cross or frames_seen",
}


@pytest.mark.parametrize(
    ("pipeline", "version"),
    [
        (host.pipeline, version)
        for host in HOSTS
        for version in sorted({(host.versions or VERSIONS[host.package])[end] for end in (0, -1)})
        if version not in ("0.35.2",)  # the environment's own
    ],
)
def test_host(pipeline: str, version: str) -> None:
    host = next(host for host in HOSTS if host.pipeline == pipeline)
    selected = SELECTED[host.package]
    if host.pipeline == "`diffusers.Wan22Blocks`":
        selected = "every_strategy or guiders or own or left_behind or doctor"
    elif host.package == "diffusers":
        selected = f"({selected}) and {host.selected}"
    if (pipeline, version) == ("`wan.image2video.WanI2V`", "2.2.0"):
        selected = "every_version"
    try:
        outcome = run(host, version, selected)
    except FileNotFoundError as error:
        pytest.skip(str(error))
    assert not outcome.failed, outcome.output
    assert outcome.passed
