"""Fixtures: ComfyUI and experts in it; skipped where `make test-comfyui` has not been run."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from .experts import Experts, experts
from .install import load

# ComfyUI's own trouble with newer numpy and torch, and what torch says of a graph that breaks where it should.
_WARNINGS = (
    "ignore:__array_wrap__ must accept:DeprecationWarning",
    "ignore:Using a non-tuple sequence:UserWarning",
    "ignore:Should have t[ab]:UserWarning",
    "ignore:Dynamo does not know how to trace:UserWarning",
)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Leave out warnings that are not ours."""
    for item in items:
        if item.path.parent == Path(__file__).parent:
            for warning in _WARNINGS:
                item.add_marker(pytest.mark.filterwarnings(warning))


@pytest.fixture(scope="session", autouse=True)
def comfy() -> Any:
    """ComfyUI's modules."""
    try:
        return load()
    except FileNotFoundError as error:
        pytest.skip(str(error))


@pytest.fixture(scope="session")
def t2v_experts(comfy: Any) -> Experts:
    """Experts of a text-to-video model."""
    return experts("t2v")


@pytest.fixture(scope="session")
def i2v_experts(comfy: Any) -> Experts:
    """Experts of an image-to-video model."""
    return experts("i2v")
