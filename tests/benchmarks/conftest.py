"""The benchmark is a folder of scripts: its modules are found where `python benchmarks/suite.py` finds them."""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[2] / "benchmarks"))
