"""When a trial is given up while it is being timed."""

from __future__ import annotations

from optuna.pruners import BasePruner
from optuna.study import Study
from optuna.trial import FrozenTrial, TrialState

from autotune.measure.racing import is_plainly_slow


class PlainlySlowPruner(BasePruner):
    """Prunes a trial whose running median is far above the best finished one.

    A step is a timing round; its value the median of all samples so far, microseconds.
    """

    def prune(self, study: Study, trial: FrozenTrial) -> bool:
        """Whether the trial's latest median is plainly slower than the best trial's value."""
        if trial.last_step is None:
            return False
        complete = study.get_trials(deepcopy=False, states=(TrialState.COMPLETE,))
        best_us = min((t.value for t in complete if t.value is not None), default=None)
        if best_us is None:
            return False
        return is_plainly_slow(trial.intermediate_values[trial.last_step], best_us)
