"""The measures of `halfframe_tinywan.truth`, as the study keeps them."""

from __future__ import annotations

import collections
from collections.abc import Sequence
from typing import Any

from halfframe_tinywan.language import Scene
from halfframe_tinywan.truth import features, measure_all
from torch import Tensor

__all__ = ["judge_truth"]


def judge_truth(clips: Tensor, scenes: Sequence[Scene]) -> dict[str, Any]:
    """What `clips` ``(N, 3, F, 96, 96)``, 0..1, show: for each, whether it is right and valid, and its features."""
    found = measure_all(clips, scenes)
    values = features(clips, found).tolist()
    return {
        "right": [int(one.right) for one in found],
        "valid": [int(one.valid) for one in found],
        "faults": dict(collections.Counter(name for one in found for name in one.faults)),
        "features": [[float(f"{value:.3g}") for value in row] for row in values],
    }
