"""Which trials are cut short while they are timed."""

from __future__ import annotations

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
        complete = study.get_trials(deepcopy=False, states=(TrialState.COMPLETE,))
        rivals = (t for t in complete if self._are_alike(t, trial))
        best_us = min((t.value for t in rivals if t.value is not None), default=None)
        if best_us is None:
            return False
        return is_told_apart(trial.intermediate_values[samples], samples, best_us=best_us)

    def _are_alike(self, one: FrozenTrial, other: FrozenTrial) -> bool:
        return self._alike is None or one.params.get(self._alike) == other.params.get(self._alike)
