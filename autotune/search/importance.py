"""Which parameters matter for the latency of a shape."""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Sequence

import optuna
from optuna.distributions import IntDistribution
from optuna.importance import PedAnovaImportanceEvaluator, get_param_importances
from optuna.trial import TrialState, create_trial

from autotune.measure import Measurement

#: Fewer say nothing: the best tenth of ten is a single one.
LEAST_MEASURED = 10


def importances(measurements: Iterable[Measurement]) -> dict[str, float]:
    """The share of each parameter in what tells the fastest tenth from the rest.

    PED-ANOVA (Watanabe, Bansal and Hutter, IJCAI 2023), as Optuna computes it, over the positions
    of the values that were measured. What was cut short counts with what was timed of it: the
    method looks at ranks only, and a search cuts most of its trials short.

    Args:
        measurements: Of one shape.

    Returns:
        Per parameter its share, the largest first; they add up to 1. Empty where too little was
        timed, or no parameter has two values.
    """
    timed = [one for one in measurements if one.samples_us]
    configs = [one.config.as_dict() for one in timed]
    axes = {name: sorted({config[name] for config in configs}) for name in (configs or [{}])[0]}
    axes = {name: values for name, values in axes.items() if len(values) > 1}
    if len(timed) < LEAST_MEASURED or not axes:
        return {}
    study = _study(timed, axes)
    found = get_param_importances(study, evaluator=PedAnovaImportanceEvaluator())
    return dict(sorted(found.items(), key=lambda pair: -pair[1]))


def _study(timed: Sequence[Measurement], axes: dict[str, list[int]]) -> optuna.Study:
    """A study in memory of what was timed, each value as its position on its axis."""
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    distributions = {name: IntDistribution(0, len(values) - 1) for name, values in axes.items()}
    study = optuna.create_study()
    study.add_trials(
        create_trial(
            state=TrialState.COMPLETE,
            value=statistics.median(one.samples_us),
            params={name: axis.index(one.config.as_dict()[name]) for name, axis in axes.items()},
            distributions=dict(distributions),
        )
        for one in timed
    )
    return study
