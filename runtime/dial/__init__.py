"""Set how much of a model runs: the dial that a user turns, and the thresholds that it stands for."""

from .curve import at_compute, between
from .dial import CALIBRATED, Dial, resolve, warnings_for
from .thresholds import Floats, Thresholds

__all__ = ["CALIBRATED", "Dial", "Floats", "Thresholds", "at_compute", "between", "resolve", "warnings_for"]
