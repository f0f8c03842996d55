"""Measure on your own weights what each step can do without, and make recipes of it."""

from halfframe.tuning.asked import tried
from halfframe.tuning.result import Candidate, Measured, Tuning
from halfframe.tuning.tune import BUDGETS, MOVES, tune, tune_cases

__all__ = ["BUDGETS", "MOVES", "Candidate", "Measured", "Tuning", "tried", "tune", "tune_cases"]
