"""Expansion strategies: one per file, each reached through the entry-point group ``halfframe.strategies``."""

from halfframe.strategies.base import Allocation, Expansion, Step, Strategy
from halfframe.strategies.mixture import Mixture

__all__ = ["Allocation", "Expansion", "Mixture", "Step", "Strategy"]
