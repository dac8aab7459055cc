"""Figures of a contest of samplers."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from autotune.report.plots.figures import figure, line

if TYPE_CHECKING:
    import plotly.graph_objects as go

    from autotune.search.contest.curves import Curve

#: The highest regret that is drawn, percent: the first trials would flatten the rest.
_HIGHEST_DRAWN = 50.0


def write_comparison_plot(groups: Mapping[str, Sequence[Sequence[Curve]]], path: Path) -> None:
    """Write ``comparison_plot`` as an HTML file that needs no network."""
    comparison_plot(groups).write_html(path, include_plotlyjs=True)


def comparison_plot(groups: Mapping[str, Sequence[Sequence[Curve]]]) -> go.Figure:
    """Regret over trials: median and worst over shapes, of the median over seeds.

    Args:
        groups: By name in the legend, the curves of each shape together.
    """
    from plotly.subplots import make_subplots

    overs: Mapping[str, Callable[[list[float]], float]]
    overs = {"Median over shapes": statistics.median, "Worst shape": max}
    plot = make_subplots(rows=1, cols=2, subplot_titles=[*overs], shared_yaxes=True)
    for number, (name, shapes) in enumerate(groups.items()):
        medians = [_median_over_seeds(curves) for curves in shapes]
        trials = range(1, max(map(len, medians)) + 1)
        for column, over in enumerate(overs.values(), start=1):
            heights = [over([each[min(n, len(each)) - 1] for each in medians]) for n in trials]
            plot.add_trace(_line(name, list(trials), heights, number, column), row=1, col=column)
    plot.update_xaxes(title_text="trials")
    plot.update_yaxes(title_text="slower than the recorded best, %", row=1, col=1)
    plot.update_layout(template="plotly_white", title="Samplers on recorded shapes")
    return plot


def nearness_plot(groups: Mapping[str, Sequence[Curve]], nearness: float) -> go.Figure:
    """The share of searches that have come near the recorded best, over trials.

    Args:
        groups: By name in the legend, the curves.
        nearness: How much slower than the recorded best counts as near; 0.05 is 5 %.
    """
    traces = []
    for number, (name, curves) in enumerate(groups.items()):
        trials = range(1, max(len(curve.regret) for curve in curves) + 1)
        shares = [
            sum(curve.trials_to(nearness) <= n for curve in curves) / len(curves) for n in trials
        ]
        look = {"name": name, "line": {"color": _colour(number), "shape": "hv"}}
        traces.append(line(trials, shares, hover="trial %{x}: %{y:.0%}", **look))
    return figure(
        traces,
        x={"title": {"text": "trials"}},
        y={
            "title": {"text": f"searches within {nearness:.0%} of the best"},
            "tickformat": ".0%",
            "range": [0, 1.02],
        },
    )


def _line(name: str, trials: list[int], regrets: list[float], number: int, column: int) -> Any:  # noqa: ANN401 - plotly ships no types
    import plotly.graph_objects as go

    percent = [min(100.0 * each, _HIGHEST_DRAWN) for each in regrets]
    return go.Scatter(
        x=trials,
        y=percent,
        name=name,
        legendgroup=name,
        showlegend=column == 1,
        line={"color": _colour(number), "shape": "hv"},
    )


def _colour(number: int) -> str:
    from plotly.colors import qualitative

    colours: Sequence[str] = qualitative.D3
    return colours[number % len(colours)]


def _median_over_seeds(curves: Sequence[Curve]) -> list[float]:
    longest = max(len(curve.regret) for curve in curves)
    return [statistics.median(c.after(n) for c in curves) for n in range(1, longest + 1)]
