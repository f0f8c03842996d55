"""Fixtures: tiny pipelines of the real host classes, on CPU."""

from __future__ import annotations

import importlib.util
import os
from typing import Any

import pytest
import torch

from halfframe.testing import tiny_wan_i2v, tiny_wan_t2v

torch.set_num_threads(1)  # models this small spend their time waiting for a second thread


@pytest.fixture(scope="session", autouse=True)
def expected_host() -> None:
    """A run that is meant for another version of a host must not silently find the usual one."""
    wanted = os.environ.get("HALFFRAME_EXPECTED_HOST")
    if wanted:
        module, folder = wanted.split("=")
        spec = importlib.util.find_spec(module)
        assert spec is not None
        assert str(spec.origin).startswith(folder), f"wanted {module} from {folder}, found {spec.origin}"


@pytest.fixture
def t2v() -> Any:
    """A real ``WanT2V`` with two tiny random experts."""
    return tiny_wan_t2v()


@pytest.fixture
def i2v() -> Any:
    """A real ``WanI2V`` with two tiny random experts."""
    return tiny_wan_i2v()
