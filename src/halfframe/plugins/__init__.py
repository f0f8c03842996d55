"""Plugins: hooks, strategies by name, and the options that they make up."""

__all__ = ["DEFAULT_STRATEGY"]

DEFAULT_STRATEGY = "merge"
"""Nearest to the full run of the whole-phase strategies that cost as much; the source's is `self-duplicate`."""
