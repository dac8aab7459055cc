"""The search: one Optuna study per kernel shape. Only this package imports Optuna."""

import warnings

with warnings.catch_warnings():
    # In a notebook without ipywidgets Optuna's progress bar, which nothing here shows, warns.
    warnings.filterwarnings("ignore", message="IProgress not found")
    import optuna  # noqa: F401 - the modules of this package find it imported

from autotune.search.budget import Budget
from autotune.search.dashboard.mirror import TrialMirror
from autotune.search.tuner import ShapeTuner

__all__ = ["Budget", "ShapeTuner", "TrialMirror"]
