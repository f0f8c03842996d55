"""Fixtures: ComfyUI and experts in it; skipped where `make comfyui` has not been run."""

from __future__ import annotations

from typing import Any

import pytest

from .experts import Experts, experts
from .install import load


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
