"""The built-in strategies, one family per file, each reached through the entry-point group ``halfframe.strategies``."""

from halfframe.strategies.expansion import Expansion, PreviousOdd, SelfDuplicate
from halfframe.strategies.merge import Merge
from halfframe.strategies.recipe import Recipe
from halfframe.strategies.selection import Interleave, Interpolate, OwnNoise

__all__ = ["Expansion", "Interleave", "Interpolate", "Merge", "OwnNoise", "PreviousOdd", "Recipe", "SelfDuplicate"]
