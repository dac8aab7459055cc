"""Measuring configurations of a shape, on a GPU or from a recording."""

from autotune.measure._base import EnoughRule, Runner, StopRule, never_stop
from autotune.measure.measurement import Comparison, DeviceState, Measurement, Outcome, RunnerStatus

__all__ = [
    "Comparison",
    "DeviceState",
    "EnoughRule",
    "Measurement",
    "Outcome",
    "Runner",
    "RunnerStatus",
    "StopRule",
    "never_stop",
]
