"""The packages of the extra ``halfframe[compare]``: imported when they are needed, and asked for by name if missing."""

from __future__ import annotations

import importlib
from typing import Any

from halfframe.errors import HalfframeError

__all__ = ["require"]


def require(module: str, purpose: str) -> Any:
    """Import `module`.

    Raises:
        HalfframeError: it is not installed; the message says what it is needed for and how to get it.
    """
    try:
        return importlib.import_module(module)
    except ImportError as error:
        package = {"skimage": "scikit-image", "PIL": "pillow"}.get(module.split(".")[0], module.split(".")[0])
        raise HalfframeError(
            f"{package} is needed to {purpose}, but cannot be imported ({error}); pip install 'halfframe[compare]'."
        ) from error
