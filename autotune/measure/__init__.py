"""Turning (shape, configuration) into measurements, on a GPU or from a recording."""

from autotune.measure._base import Measurement, Outcome, Runner, StopRule, never_stop

__all__ = ["Measurement", "Outcome", "Runner", "StopRule", "never_stop"]
