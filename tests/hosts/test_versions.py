"""The same tests on other versions of the hosts, each in a process that finds that version first."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

HOSTS = Path(sys.prefix) / "hosts"  # `make test` installs them there
TESTS = Path(__file__).parent


@pytest.mark.parametrize("version", ["2.2.0", "2.2.11"])
def test_official_wan(version: str) -> None:
    host = HOSTS / f"wan22-{version}"
    if not host.is_dir():
        pytest.skip(f"wan22 {version} is not in {HOSTS}; `make test` puts it there")
    selected = (
        "(reference_loop and (17 or 21) and self-duplicate) or fork or forward_counts or what_reaches or every_version"
    )
    files = [str(TESTS / name) for name in ("test_wan_t2v.py", "test_wan_i2v.py", "test_cfg_truncation.py")]
    finished = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-rs", "-p", "no:cacheprovider", "-k", selected, *files],
        env={**os.environ, "PYTHONPATH": str(host), "HALFFRAME_EXPECTED_WAN": str(host)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert finished.returncode == 0, finished.stdout + finished.stderr
    assert " passed" in finished.stdout
