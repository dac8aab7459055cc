"""The search: one Optuna study per kernel shape. Only this package imports Optuna."""

from autotune.search.mirror import TrialMirror
from autotune.search.samplers import SAMPLERS
from autotune.search.tuner import Budget, ShapeTuner

__all__ = ["SAMPLERS", "Budget", "ShapeTuner", "TrialMirror"]
