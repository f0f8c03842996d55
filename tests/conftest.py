"""Fixtures: tiny pipelines of the real host classes, on CPU."""

from __future__ import annotations

import importlib.util
import logging
import os
import signal
from collections.abc import Generator
from typing import Any

import pytest
import torch

from halfframe import HalfframeWarning
from halfframe.testing import tiny_wan_i2v, tiny_wan_t2v

pytest_plugins = ["pytester"]
torch.set_num_threads(1)  # models this small spend their time waiting for a second thread
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:  # as in a shell's background job: interrupts would never arrive
    signal.signal(signal.SIGINT, signal.default_int_handler)


class _LoggedWarnings(logging.Handler):
    """Collects warnings of ours that were logged, because as errors they would have cost a finished video."""

    def __init__(self) -> None:
        super().__init__(logging.ERROR)
        self.found: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        given = record.args if isinstance(record.args, tuple) else ()
        self.found.extend(str(value) for value in given if isinstance(value, HalfframeWarning))


@pytest.hookimpl(wrapper=True)
def pytest_runtest_call(item: pytest.Item) -> Generator[None, Any, Any]:
    """Fail a test in which a warning came that it did not ask for, at the end of a run too."""
    logger, handler = logging.getLogger("halfframe"), _LoggedWarnings()
    logger.addHandler(handler)
    try:
        result = yield
    finally:
        logger.removeHandler(handler)
    if handler.found and item.get_closest_marker("logs_warnings") is None:
        pytest.fail(f"unexpected warnings: {handler.found}", pytrace=False)
    return result


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
