"""Turning (shape, configuration) into measurements, on a GPU or from a recording."""

from autotune.measure._base import (
    Comparison,
    DeviceState,
    EnoughRule,
    Measurement,
    Outcome,
    Runner,
    RunnerStatus,
    StopRule,
    never_stop,
)

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
