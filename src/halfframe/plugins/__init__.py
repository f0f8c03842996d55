"""Plugins: hooks, strategies by name, and the options that they make up."""

__all__ = ["DEFAULT_STRATEGY"]

DEFAULT_STRATEGY = "interleave:until=0.99"
"""Keeps the take of a seed; the source's, `self-duplicate`, halves the whole high-noise phase and makes another one."""
