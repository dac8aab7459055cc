"""The search: one Optuna study per kernel shape. Only this package imports Optuna."""

import warnings

with warnings.catch_warnings():
    # Importing Optuna in a notebook without ipywidgets warns of a progress bar, unused here.
    warnings.filterwarnings("ignore", message="IProgress not found")
    import optuna  # noqa: F401 - imported first, so that it warns of nothing later

from autotune.search.budget import Budget
from autotune.search.dashboard.mirror import TrialMirror
from autotune.search.tuner import ShapeTuner

__all__ = ["Budget", "ShapeTuner", "TrialMirror"]
