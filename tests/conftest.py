"""Fixtures: tiny pipelines of the real host classes, on CPU."""

from __future__ import annotations

import os
from typing import Any

import pytest
import torch

from halfframe.testing import import_wan, tiny_wan_i2v, tiny_wan_t2v

torch.set_num_threads(1)  # models this small spend their time waiting for a second thread


@pytest.fixture(scope="session", autouse=True)
def expected_host() -> None:
    """A run that is meant for another version of the host must not silently find the usual one."""
    wanted = os.environ.get("HALFFRAME_EXPECTED_WAN")
    if wanted:
        found = import_wan().__file__
        assert found.startswith(wanted), f"wanted wan from {wanted}, found {found}"


@pytest.fixture
def t2v() -> Any:
    """A real ``WanT2V`` with two tiny random experts."""
    return tiny_wan_t2v()


@pytest.fixture
def i2v() -> Any:
    """A real ``WanI2V`` with two tiny random experts."""
    return tiny_wan_i2v()
