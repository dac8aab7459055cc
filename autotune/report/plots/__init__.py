"""Every figure, for notebooks and the page: plain records in, plotly figures out.

Trials of one shape: ``finalists``, ``convergence``, ``outcomes``, ``importance``. The space of one
shape: ``slices``, ``parallel``, ``interaction``. Many shapes: ``speedup_map``, ``importance_map``,
``outcome_bars``, ``losses_between``, ``time_bars``. Sensitivity of many shapes: ``gain_map``,
``loss_map``, ``pair_map``, ``steps_to_best``. Samplers: ``comparison_plot``, ``nearness_plot``. Any
table of factors: ``factor_map``.
"""

from autotune.report.plots.contest import comparison_plot, nearness_plot
from autotune.report.plots.heat import factor_map
from autotune.report.plots.overview import (
    importance_map,
    losses_between,
    outcome_bars,
    speedup_map,
    time_bars,
    time_line,
)
from autotune.report.plots.sensitivity import (
    gain_map,
    importance_shares,
    loss_map,
    pair_map,
    steps_to_best,
)
from autotune.report.plots.space import interaction, parallel, slices
from autotune.report.plots.trials import convergence, finalists, importance, outcomes

__all__ = [
    "comparison_plot",
    "convergence",
    "factor_map",
    "finalists",
    "gain_map",
    "importance",
    "importance_map",
    "importance_shares",
    "interaction",
    "loss_map",
    "losses_between",
    "nearness_plot",
    "outcome_bars",
    "outcomes",
    "pair_map",
    "parallel",
    "slices",
    "speedup_map",
    "steps_to_best",
    "time_bars",
    "time_line",
]
