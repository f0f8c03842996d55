"""Expansion strategies: one per file, each reached through the entry-point group ``halfframe.strategies``."""

from halfframe.strategies.base import Allocation, Expansion, Mixture, Step, Strategy

__all__ = ["Allocation", "Expansion", "Mixture", "Step", "Strategy"]
