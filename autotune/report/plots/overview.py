"""Figures of many shapes side by side."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from autotune.choose.between import WORST_LOSS
from autotune.measure import Outcome
from autotune.report.plots.figures import (
    CELL_TEXT,
    CELLS,
    CHOSEN,
    DEFAULT,
    OTHER,
    OUTCOME_COLOURS,
    OUTCOME_NAMES,
    escaped,
    figure,
    rounded,
)

if TYPE_CHECKING:
    import plotly.graph_objects as go

#: Pixels of a row of cells or bars, and of what is above and below them.
_ROW, _AROUND = 26, 110

#: The colours of a speed-up reach this factor to both sides; few are larger, and those all look
#: alike good.
_FULL_COLOUR = 4.0


def speedup_map(ratios: Mapping[tuple[str, int], float | None]) -> go.Figure:
    """How many times as fast as the default, over layers and numbers of tokens.

    Args:
        ratios: By name of the row and number of tokens; None where the default does not run. What
            is missing stays empty.
    """
    names, counts = _axes(ratios)
    cells = [[ratios.get((name, count)) for count in counts] for name in names]
    logs = [[None if ratio is None else round(math.log2(ratio), 3) for ratio in r] for r in cells]
    most = math.log2(_FULL_COLOUR)
    ticks = [1 / _FULL_COLOUR, 1, _FULL_COLOUR]
    heat = _heat(names, counts, logs) | {
        "text": [[_times(name, count, ratios) for count in counts] for name in names],
        "zmin": -most,
        "zmax": most,
        "colorscale": [[0, CELLS[0]], [0.5, CELLS[1]], [1, CELLS[2]]],
        "colorbar": {
            "tickvals": [math.log2(tick) for tick in ticks],
            "ticktext": [f"{tick:g}x" for tick in ticks],
            "thickness": 12,
        },
        "hovertemplate": "%{y}, %{x} tokens: %{text}<extra></extra>",
    }
    return _map(heat, names)


def _times(name: str, count: int, ratios: Mapping[tuple[str, int], float | None]) -> str:
    if (name, count) not in ratios:
        return ""
    ratio = ratios[name, count]
    return "no default" if ratio is None else f"{ratio:.2f}"


def importance_map(shares: Mapping[tuple[str, int], Mapping[str, float]]) -> go.Figure:
    """How much each parameter matters in each shape.

    Args:
        shares: By name and number of tokens the share of each parameter, from 0 to 1.
    """
    parameters = list(dict.fromkeys(name for of_one in shares.values() for name in of_one))
    rows = [f"{name}, {count} tokens" for name, count in shares]
    cells = [[of_one.get(name) for name in parameters] for of_one in shares.values()]
    heat = _heat(rows, parameters, cells) | {
        "zmin": 0,
        "zmax": 1,
        "colorscale": [[0, CELLS[1]], [1, CELLS[2]]],
        "texttemplate": "%{z:.0%}",
        "colorbar": {"tickformat": ".0%", "thickness": 12},
        "hovertemplate": "%{y}: %{x} %{z:.0%}<extra></extra>",
    }
    return _map(heat, rows, title="parameter")


def _axes(cells: Iterable[tuple[str, int]]) -> tuple[list[str], list[int]]:
    cells = list(cells)
    return list(dict.fromkeys(name for name, _ in cells)), sorted({count for _, count in cells})


def _heat(
    rows: Sequence[str], columns: Sequence[object], cells: Sequence[Sequence[float | None]]
) -> dict[str, Any]:
    return {
        "type": "heatmap",
        "x": list(map(str, columns)),
        "y": list(map(escaped, rows)),
        "z": list(map(list, cells)),
        "xgap": 2,
        "ygap": 2,
        "texttemplate": "%{text}",
        "textfont": {"color": CELL_TEXT},
    }


def _map(heat: Mapping[str, Any], rows: Sequence[str], title: str = "tokens") -> go.Figure:
    return figure(
        [heat],
        x={"title": {"text": title}, "type": "category", "showgrid": False},
        y={"type": "category", "autorange": "reversed", "showgrid": False},
        height=_AROUND + _ROW * len(rows),
    )


def outcome_bars(counts: Mapping[str, Mapping[str, int]]) -> go.Figure:
    """How many configurations of each shape ended in which outcome.

    Args:
        counts: By name of the shape the number of each outcome, by its value such as ``ok``.
    """
    return _stacked(
        {name: {Outcome(each): n for each, n in of.items()} for name, of in counts.items()},
        "configurations",
    )


def time_bars(spent_s: Mapping[str, Mapping[str, float]]) -> go.Figure:
    """Where the time of each shape's measurements went.

    Args:
        spent_s: By name of the shape the seconds spent on configurations of each outcome.
    """
    return _stacked(
        {name: {Outcome(each): s for each, s in of.items()} for name, of in spent_s.items()},
        "seconds",
    )


def _stacked(amounts: Mapping[str, Mapping[Outcome, float]], unit: str) -> go.Figure:
    ended = [outcome for outcome in Outcome if any(of.get(outcome) for of in amounts.values())]
    bars = [
        {
            "type": "bar",
            "orientation": "h",
            "name": OUTCOME_NAMES[outcome],
            "y": list(map(escaped, amounts)),
            "x": rounded(of.get(outcome, 0) for of in amounts.values()),
            "marker": {"color": OUTCOME_COLOURS[outcome]},
            "hovertemplate": f"%{{y}}: %{{x}} {unit} {OUTCOME_NAMES[outcome]}<extra></extra>",
        }
        for outcome in ended
    ]
    return figure(
        bars,
        x={"title": {"text": unit}},
        y={"autorange": "reversed", "type": "category"},
        height=_AROUND + _ROW * len(amounts),
        barmode="stack",
    )


def losses_between(losses: Mapping[str, Mapping[int, tuple[float, float]]]) -> go.Figure:
    """How much slower vLLM's nearest row is than the best that is known, at sizes between rows.

    Args:
        losses: By name of the layer and number of tokens the loss with the rows as tuned and with
            those that there are now; 0.05 is 5 % slower. An infinite one, of what does not run, is
            not drawn.
    """
    traces = []
    sides = (("before rows were added", DEFAULT), ("now", CHOSEN))
    for name, by_count in losses.items():
        for side, (when, colour) in enumerate(sides):
            known = {n: 100 * both[side] for n, both in by_count.items() if both[side] < math.inf}
            traces.append(_losses(name, when, known, colour))
    seen: set[str] = set()
    for trace in traces:  # one entry in the legend for all layers
        trace["showlegend"] = trace["name"] not in seen
        seen.add(trace["name"])
    bound = 100 * WORST_LOSS
    limit = {"type": "line", "xref": "paper", "x0": 0, "x1": 1, "y0": bound, "y1": bound}
    return figure(
        traces,
        x={"title": {"text": "tokens"}, "type": "log", "dtick": 0.30103, "tickformat": "d"},
        y={"title": {"text": "slower than the best known, %"}, "rangemode": "tozero"},
        shapes=[limit | {"line": {"dash": "dot", "color": OTHER}}],
    )


def _losses(layer: str, when: str, percent: Mapping[int, float], colour: str) -> dict[str, Any]:
    return {
        "type": "scatter",
        "mode": "markers",
        "name": when,
        "legendgroup": when,
        "x": list(percent),
        "y": rounded(percent.values()),
        "cliponaxis": False,
        "marker": {"color": colour, "size": 6, "opacity": 0.7},
        "hovertemplate": f"{escaped(layer)}, %{{x}} tokens: %{{y}} %<extra>{when}</extra>",
    }
