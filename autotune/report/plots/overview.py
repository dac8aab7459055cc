"""Figures of many shapes side by side."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING

from autotune.choose.between import WORST_LOSS
from autotune.measure import Outcome
from autotune.report.plots.figures import (
    CELL_TEXT,
    CELLS,
    CHOSEN,
    DEFAULT,
    OUTCOME_COLOURS,
    Part,
    across,
    bars,
    dots,
    escaped,
    figure,
    rounded,
    rows_height,
)
from autotune.report.plots.heat import doublings, factor_bar, heat_map
from autotune.report.words import OUTCOME_NAMES, counted

if TYPE_CHECKING:
    import plotly.graph_objects as go

#: A speed-up of this factor, or its inverse, has the full colour; few are larger.
_FULL_COLOUR = 4.0


def speedup_map(ratios: Mapping[tuple[str, int], float | None]) -> go.Figure:
    """How many times as fast as the default each shape is, over layers and numbers of tokens.

    Args:
        ratios: By name of the row and number of tokens; None where the default does not run. The
            cells of other pairs stay empty.
    """
    names, counts = _axes(ratios)
    most = math.log2(_FULL_COLOUR)
    return heat_map(
        names,
        counts,
        doublings([[ratios.get((name, count)) for count in counts] for name in names]),
        title="tokens",
        text=[[_times(name, count, ratios) for count in counts] for name in names],
        textfont={"color": CELL_TEXT},
        zmin=-most,
        zmax=most,
        colorscale=[[0, CELLS[0]], [0.5, CELLS[1]], [1, CELLS[2]]],
        colorbar=factor_bar((1 / _FULL_COLOUR, 1, _FULL_COLOUR)),
        hovertemplate="%{y}, %{x} tokens: %{text}<extra></extra>",
    )


def _axes(cells: Iterable[tuple[str, int]]) -> tuple[list[str], list[int]]:
    cells = list(cells)
    return list(dict.fromkeys(name for name, _ in cells)), sorted({count for _, count in cells})


def _times(name: str, count: int, ratios: Mapping[tuple[str, int], float | None]) -> str:
    if (name, count) not in ratios:
        return ""
    ratio = ratios[name, count]
    return "no default" if ratio is None else f"{ratio:.2f}"


def importance_map(shares: Mapping[tuple[str, int], Mapping[str, float]]) -> go.Figure:
    """How much each parameter matters in each shape.

    Args:
        shares: By name and number of tokens, the share of each parameter, from 0 to 1.
    """
    parameters = list(dict.fromkeys(name for of_one in shares.values() for name in of_one))
    return heat_map(
        [f"{name}, {counted(count, 'token')}" for name, count in shares],
        parameters,
        [[of_one.get(name) for name in parameters] for of_one in shares.values()],
        title="parameter",
        textfont={"color": CELL_TEXT},
        zmin=0,
        zmax=1,
        colorscale=[[0, CELLS[1]], [1, CELLS[2]]],
        texttemplate="%{z:.0%}",
        colorbar={"tickformat": ".0%", "thickness": 12},
        hovertemplate="%{y}: %{x} %{z:.0%}<extra></extra>",
    )


def outcome_bars(counts: Mapping[str, Mapping[str, int]]) -> go.Figure:
    """How many configurations of each shape ended in each outcome.

    Args:
        counts: By name of the shape, the number of each outcome by its value, such as ``ok``.
    """
    return _stacked(counts, "configurations")


def time_bars(spent_s: Mapping[str, Mapping[str, float]]) -> go.Figure:
    """How much time the configurations of each outcome took, for each shape.

    Args:
        spent_s: By name of the shape, the seconds of each outcome by its value, such as ``ok``.
    """
    return _stacked(spent_s, "seconds")


def time_line(spans_s: Mapping[tuple[str, int], tuple[float, float]]) -> go.Figure:
    """When each shape was searched: shapes that are searched side by side lie above each other.

    Args:
        spans_s: By name of the kind and number of tokens, from when to when, seconds.
    """
    ordered = sorted(spans_s.items(), key=lambda pair: pair[1])
    names = [escaped(f"{kind}, {counted(count, 'token')}") for (kind, count), _ in ordered]
    begun, took = zip(*((start, end - start) for _, (start, end) in ordered), strict=True)
    return figure(
        [
            bars(
                rounded(took),
                names,
                hover="%{y}: from %{base} s, for %{x} s<extra></extra>",
                base=rounded(begun),
                marker={"color": CHOSEN},
                showlegend=False,
            )
        ],
        x={"title": {"text": "seconds since the first measurement"}},
        y={"autorange": "reversed", "type": "category"},
        height=rows_height(len(names)),
    )


def _stacked(amounts: Mapping[str, Mapping[str, float]], unit: str) -> go.Figure:
    ended = [each for each in Outcome if any(of.get(each.value) for of in amounts.values())]
    names = list(map(escaped, amounts))
    return figure(
        [
            bars(
                rounded(of.get(outcome.value, 0) for of in amounts.values()),
                names,
                hover=f"%{{y}}: %{{x}} {unit} {OUTCOME_NAMES[outcome]}<extra></extra>",
                name=OUTCOME_NAMES[outcome],
                marker={"color": OUTCOME_COLOURS[outcome]},
            )
            for outcome in ended
        ],
        x={"title": {"text": unit}},
        y={"autorange": "reversed", "type": "category"},
        height=rows_height(len(amounts)),
        barmode="stack",
    )


def losses_between(losses: Mapping[str, Mapping[int, tuple[float, float]]]) -> go.Figure:
    """How much slower vLLM's nearest row is than the best known, at batch sizes between rows.

    Args:
        losses: By name of the layer and number of tokens, the loss with the rows as tuned, and the
            loss with the present rows; 0.05 is 5 % slower. An infinite loss means that the row does
            not run there, and is not drawn.
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
    return figure(
        traces,
        x={"title": {"text": "tokens"}, "type": "log", "dtick": 0.30103, "tickformat": "d"},
        y={"title": {"text": "slower than the best known, %"}, "rangemode": "tozero"},
        shapes=[across(100 * WORST_LOSS)],
    )


def _losses(layer: str, when: str, percent: Mapping[int, float], colour: str) -> Part:
    return dots(
        list(percent),
        rounded(percent.values()),
        hover=f"{escaped(layer)}, %{{x}} tokens: %{{y}} %<extra>{when}</extra>",
        name=when,
        legendgroup=when,
        cliponaxis=False,
        marker={"color": colour, "size": 6, "opacity": 0.7},
    )
