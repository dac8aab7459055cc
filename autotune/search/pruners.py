"""Which trials are cut short while they are timed."""

from __future__ import annotations

from collections.abc import Callable, Mapping
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
        best_us = self.bests_us(study)(trial.params)
        if best_us is None:
            return False
        return is_told_apart(trial.intermediate_values[samples], samples, best_us=best_us)

    def bests_us(self, study: Study) -> Callable[[Mapping[str, Any]], float | None]:
        """The lowest latency that a trial is compared with, by its parameters; None for none.

        Args:
            study: Holds the complete trials.
        """
        found: dict[Any, float] = {}
        for each in study.get_trials(deepcopy=False, states=(TrialState.COMPLETE,)):
            if each.value is not None:
                kind = self._kind(each.params)
                found[kind] = min(each.value, found.get(kind, each.value))
        return lambda params: found.get(self._kind(params))

    def _kind(self, params: Mapping[str, Any]) -> Any:  # noqa: ANN401 - of any parameter
        return None if self._alike is None else params.get(self._alike)
