"""What every table must state about where it comes from."""

from __future__ import annotations

import datetime
import os
import platform
from pathlib import Path
from typing import Any

import torch

import halfframe

__all__ = ["machine_facts"]


def machine_facts(device: torch.device | None = None) -> dict[str, Any]:
    """Date, versions, and the machine that works on `device`; a GPU if there is one and `device` is None."""
    if device is None:
        device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    name = (
        torch.cuda.get_device_name(device) if device.type == "cuda" else f"{_cpu()}, {torch.get_num_threads()} threads"
    )
    return {
        "date": datetime.datetime.now(datetime.timezone.utc).strftime("%Y-%m-%d %H:%M UTC"),
        "machine": f"{name} of {os.cpu_count()}" if device.type == "cpu" else name,
        "python": platform.python_version(),
        "torch": torch.__version__,
        "halfframe": halfframe.__version__,
    }


def _cpu() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        return next(line.split(":", 1)[1].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()
