"""Factories that the actors import."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from halfframe.testing import tiny_diffusers_t2v, tiny_wan_t2v


def official() -> Any:
    """A tiny official pipeline."""
    return tiny_wan_t2v()


def diffusers() -> Any:
    """A tiny pipeline of diffusers."""
    return tiny_diffusers_t2v()


def dying() -> Any:
    """As `official`; its process dies at the first call, of whichever actor, as with a node that is lost."""
    pipe = tiny_wan_t2v()
    made = pipe.text_encoder
    mark = Path(os.environ["HALFFRAME_DYING"])

    def encode(*args: Any, **kwargs: Any) -> Any:
        try:
            mark.touch(exist_ok=False)
        except FileExistsError:
            return made(*args, **kwargs)
        os._exit(1)

    pipe.text_encoder = encode
    return pipe
