"""What a measurement means to Optuna."""

from __future__ import annotations

import statistics
from collections.abc import Mapping
from typing import Any

import optuna
from optuna.distributions import BaseDistribution
from optuna.trial import FrozenTrial, TrialState

from autotune.measure import Measurement, Outcome

#: The name of the constraint that a configuration violates if it cannot work.
CONSTRAINT = "runs"

#: The outcomes of configurations that work.
_WORKS = {Outcome.OK, Outcome.TOO_SLOW}


def constraint(measurement: Measurement) -> float:
    """The constraint's value: above 0 if the configuration cannot work, so samplers avoid it."""
    return 0.0 if measurement.outcome in _WORKS else 1.0


def verdict(measurement: Measurement) -> tuple[TrialState, float | None]:
    """The trial's final state, and its value: the median latency in microseconds.

    Every outcome but ``ok`` becomes PRUNED. TPE and GP never read trials that are FAILED, and so
    would learn nothing from them.
    """
    if measurement.outcome is Outcome.OK:
        return TrialState.COMPLETE, measurement.latency_us
    return TrialState.PRUNED, None


def frozen_trial(
    measurement: Measurement,
    *,
    params: Mapping[str, Any],
    distributions: Mapping[str, BaseDistribution],
) -> FrozenTrial:
    """The finished trial of a measurement, its parameters encoded by ``distributions``."""
    state, value = verdict(measurement)
    attributes: dict[str, Any] = {"outcome": measurement.outcome.value}
    if measurement.reason:
        attributes["reason"] = measurement.reason
    if measurement.relative_error is not None:
        attributes["relative_error"] = measurement.relative_error
    samples = measurement.samples_us
    return optuna.trial.create_trial(
        state=state,
        value=value,
        params=dict(params),
        distributions=dict(distributions),
        user_attrs=attributes,
        # The step that a running trial would have reported last. TPE ranks pruned trials by it: so
        # a search that goes on makes the same choices as one that was never interrupted.
        intermediate_values={len(samples): statistics.median(samples)} if samples else {},
        constraints={CONSTRAINT: constraint(measurement)},
    )
