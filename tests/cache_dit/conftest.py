"""cache-dit, from the folder that `make test-cache-dit` fills; without it these tests are skipped."""

from __future__ import annotations

import importlib
import logging
import sys
from pathlib import Path
from typing import Any

import pytest

FOLDER = Path(sys.prefix) / "cache-dit"


@pytest.fixture(scope="session")
def cache_dit() -> Any:
    """The package."""
    if not (FOLDER / "cache_dit").is_dir():
        pytest.skip(f"there is no cache-dit in {FOLDER}; `make test-cache-dit` puts it there")
    sys.path.append(str(FOLDER))
    found = importlib.import_module("cache_dit")
    assert Path(found.__file__ or "").is_relative_to(FOLDER)
    for name in ("cache_dit", "CACHE_DIT"):
        logging.getLogger(name).setLevel(logging.ERROR)
    return found
