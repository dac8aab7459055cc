"""Which trials are cut short while they are timed."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from optuna.pruners import BasePruner
from optuna.study import Study
from optuna.trial import FrozenTrial, TrialState

from autotune.measure.racing import is_told_apart


class RacingPruner(BasePruner):
    """Prunes a trial that is slower than the best complete trial by more than the noise explains.

    A step is the number of samples so far. Its value is their median, microseconds per launch.
    """

    def __init__(self, *, alike: str | None = None) -> None:
        """Compare all trials, or only trials with one value of a parameter.

        Args:
            alike: Only trials with the same value of this parameter are compared; None to compare
                all. A MoE layer may need the best of a slower ``block_m``, and all of that may be
                slower than the best of another ``block_m``.
        """
        self._alike = alike

    def prune(self, study: Study, trial: FrozenTrial) -> bool:
        """Whether the trial is slower, by its latest median, than the best complete trial."""
        samples = trial.last_step
        if samples is None:
            return False
        best_us = self.best_us(study, trial.params)
        if best_us is None:
            return False
        return is_told_apart(trial.intermediate_values[samples], samples, best_us=best_us)

    def best_us(self, study: Study, params: Mapping[str, Any]) -> float | None:
        """The lowest latency that a trial is compared with; None where there is none.

        Args:
            study: Holds the complete trials.
            params: The trial's parameters.
        """
        complete = study.get_trials(deepcopy=False, states=(TrialState.COMPLETE,))
        rivals = (each for each in complete if self._are_alike(each.params, params))
        return min((each.value for each in rivals if each.value is not None), default=None)

    def _are_alike(self, one: Mapping[str, Any], other: Mapping[str, Any]) -> bool:
        return self._alike is None or one.get(self._alike) == other.get(self._alike)
