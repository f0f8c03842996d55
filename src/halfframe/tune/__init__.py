"""Measure on your own weights what each step can do without, and make recipes of it."""

from halfframe.tune.tuning import MOVES, Measured, Tuning, tune

__all__ = ["MOVES", "Measured", "Tuning", "tune"]
