"""What is true of a clip: measured against the known world, with no other clip to compare it with."""

from halfframe_tinywan.truth.frechet import FEATURES, features, frechet_distance
from halfframe_tinywan.truth.intervals import Interval, difference_interval, mean_interval, share_interval
from halfframe_tinywan.truth.takes import LIMITS, Truth, measure, measure_all
from halfframe_tinywan.truth.things import Sighting

__all__ = [
    "FEATURES",
    "LIMITS",
    "Interval",
    "Sighting",
    "Truth",
    "difference_interval",
    "features",
    "frechet_distance",
    "mean_interval",
    "measure",
    "measure_all",
    "share_interval",
]
