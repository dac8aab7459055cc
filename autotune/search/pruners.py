"""When a trial is given up while it is being timed."""

from __future__ import annotations

from optuna.pruners import BasePruner
from optuna.study import Study
from optuna.trial import FrozenTrial, TrialState

from autotune.measure.racing import is_told_apart


class RacingPruner(BasePruner):
    """Prunes a trial that is slower than the best finished one beyond what the noise explains.

    A step is the number of samples so far; its value their median, microseconds per launch.
    """

    def prune(self, study: Study, trial: FrozenTrial) -> bool:
        """Whether the trial's latest median is told apart from the best complete trial's."""
        samples = trial.last_step
        if samples is None:
            return False
        complete = study.get_trials(deepcopy=False, states=(TrialState.COMPLETE,))
        best_us = min((t.value for t in complete if t.value is not None), default=None)
        if best_us is None:
            return False
        return is_told_apart(trial.intermediate_values[samples], samples, best_us=best_us)
