"""The search: one Optuna study per kernel shape. Only this package imports Optuna."""

from autotune.search.budget import Budget, TimeShares, extra_trials
from autotune.search.mirror import TrialMirror
from autotune.search.samplers import ADAPTIVE, SAMPLERS
from autotune.search.transfer import Neighbour, in_order
from autotune.search.tuner import ShapeTuner, name_in, study_name

__all__ = [
    "ADAPTIVE",
    "SAMPLERS",
    "Budget",
    "Neighbour",
    "ShapeTuner",
    "TimeShares",
    "TrialMirror",
    "extra_trials",
    "in_order",
    "name_in",
    "study_name",
]
