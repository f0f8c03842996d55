"""LPIPS (Zhang et al. 2018), if the ``lpips`` package and its AlexNet weights are on this machine already.

Nothing is downloaded: a comparison must not depend on what a server hands out that day.
"""

from __future__ import annotations

import functools
import importlib
import importlib.util
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

__all__ = ["load_lpips"]

Distance = Callable[[npt.NDArray[Any], npt.NDArray[Any]], tuple[float, ...]]


@functools.cache
def load_lpips() -> Distance | str:
    """A function of two videos ``(F, H, W, 3)`` in 0..1 that gives LPIPS (AlexNet) per frame; or why there is none."""
    for package in ("lpips", "torchvision"):
        if importlib.util.find_spec(package) is None:
            return f"the package {package} is not installed"
    if not list(Path(torch.hub.get_dir(), "checkpoints").glob("alexnet-*.pth")):
        return "AlexNet's weights (alexnet-*.pth) are not in the checkpoints folder of torch.hub"
    try:
        model = importlib.import_module("lpips").LPIPS(net="alex", verbose=False).eval()
    except Exception as error:
        return f"the lpips package did not load: {type(error).__name__}: {error}"

    @torch.no_grad()
    def distance(video: npt.NDArray[Any], baseline: npt.NDArray[Any]) -> tuple[float, ...]:
        return tuple(float(model(_frame(a), _frame(b))) for a, b in zip(video, baseline, strict=True))

    return distance


def _frame(frame: npt.NDArray[Any]) -> torch.Tensor:
    """``(H, W, 3)`` in 0..1 -> ``(1, 3, H, W)`` in -1..1, as the model wants it."""
    return torch.from_numpy(np.ascontiguousarray(frame, np.float32)).permute(2, 0, 1)[None] * 2 - 1
