"""A strategy and a hook plugin for halfframe."""

from halfframe_crossfade.strategy import crossfade

__all__ = ["crossfade"]
