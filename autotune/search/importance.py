"""Which parameters matter for the latency of a shape."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence

import optuna
from optuna.distributions import IntDistribution
from optuna.importance import PedAnovaImportanceEvaluator, get_param_importances
from optuna.trial import TrialState, create_trial

from autotune.measure import Measurement

#: The share of configurations that counts as the fastest: Optuna's own choice.
_FASTEST = 0.1

#: With fewer measurements nothing is said: the fastest tenth of ten is a single one.
LEAST_MEASURED = 10


def importances(measurements: Iterable[Measurement]) -> dict[str, float]:
    """How much each parameter decides whether a configuration is among the fastest tenth.

    PED-ANOVA (Watanabe, Bansal and Hutter, IJCAI 2023), as Optuna computes it, over the positions
    of the values that were measured. A measurement that was cut short counts with the samples that
    it has: the method looks at ranks only, and a search cuts most of its trials short.

    Args:
        measurements: The measurements of one shape.

    Returns:
        The share of every parameter, the largest first; the shares add up to 1. Empty where too
        little was timed, no parameter has two values, or nearly all configurations are equally
        fast.
    """
    timed = [one for one in measurements if one.samples_us]
    configs = [one.config.as_dict() for one in timed]
    axes = {name: sorted({config[name] for config in configs}) for name in (configs or [{}])[0]}
    axes = {name: values for name, values in axes.items() if len(values) > 1}
    latencies_us = sorted(one.latency_us for one in timed)
    if len(timed) < LEAST_MEASURED or not axes:
        return {}
    if latencies_us[math.ceil(_FASTEST * len(timed)) - 1] == latencies_us[-1]:
        return {}  # nearly all are as fast as the fastest tenth: no parameter decides
    study = _study(timed, axes)
    evaluator = PedAnovaImportanceEvaluator(target_quantile=_FASTEST)
    found = get_param_importances(study, evaluator=evaluator)
    return dict(sorted(found.items(), key=lambda pair: -pair[1]))


def _study(timed: Sequence[Measurement], axes: dict[str, list[int]]) -> optuna.Study:
    """A study in memory that holds the timed configurations, values as positions on their axes."""
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    distributions = {name: IntDistribution(0, len(values) - 1) for name, values in axes.items()}
    study = optuna.create_study()
    study.add_trials(
        create_trial(
            state=TrialState.COMPLETE,
            value=one.latency_us,
            params={name: axis.index(one.config.as_dict()[name]) for name, axis in axes.items()},
            distributions=dict(distributions),
        )
        for one in timed
    )
    return study
