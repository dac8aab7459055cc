"""Every figure, for notebooks and reports: plain records in, plotly figures out.

Of one shape's trials: ``finalists``, ``convergence``, ``outcomes``, ``importance``. Of its space:
``slices``, ``parallel``, ``interaction``. Of many shapes: ``speedup_map``, ``importance_map``,
``outcome_bars``, ``losses_between``, ``time_bars``.
"""

from autotune.report.plots.overview import (
    importance_map,
    losses_between,
    outcome_bars,
    speedup_map,
    time_bars,
)
from autotune.report.plots.space import interaction, parallel, slices
from autotune.report.plots.trials import convergence, finalists, importance, outcomes

__all__ = [
    "convergence",
    "finalists",
    "importance",
    "importance_map",
    "interaction",
    "losses_between",
    "outcome_bars",
    "outcomes",
    "parallel",
    "slices",
    "speedup_map",
    "time_bars",
]
