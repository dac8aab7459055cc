"""The search: one Optuna study per kernel shape. Only this package imports Optuna."""

import warnings

with warnings.catch_warnings():
    # In a notebook without ipywidgets Optuna's progress bar, which nothing here shows, warns.
    warnings.filterwarnings("ignore", message="IProgress not found")
    import optuna  # noqa: F401 - the modules of this package find it imported

from autotune.plan.file import ADAPTIVE, SAMPLERS
from autotune.search.budget import Budget, TimeShares, extra_trials
from autotune.search.dashboard.mirror import TrialMirror
from autotune.search.samplers.transfer import Neighbour, in_order
from autotune.search.tuner import ShapeTuner

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
]
