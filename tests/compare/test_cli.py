"""`halfframe compare` is reached through the one command."""

from __future__ import annotations

from pathlib import Path

import pytest

from halfframe.cli import main


def test_compare_is_a_command(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    with pytest.raises(SystemExit) as stop:
        main(["compare", "--help"])
    assert stop.value.code == 0
    assert "usage: halfframe compare" in capsys.readouterr().out
    assert main(["compare", str(tmp_path / "a.mp4"), str(tmp_path / "b.mp4")]) == 1
    progress, _, error = capsys.readouterr().err.strip().rpartition("\n")
    assert error.startswith("halfframe compare: error: the baseline cannot be used: there is no video file")
    assert "Traceback" not in progress
