"""Figures of the space of one shape: latency over its parameters."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from autotune.launch.config import KernelConfig
from autotune.measure import Measurement
from autotune.report.plots.figures import (
    BAD,
    CELL_TEXT,
    CELLS,
    CHOSEN,
    DEFAULT,
    OTHER,
    figure,
    latency_axis,
    log_ticks,
    rounded,
)

if TYPE_CHECKING:
    import plotly.graph_objects as go

#: Between two slices, as a share of the figure's width.
_GAP = 0.035

#: Above this many times the best a latency is drawn in the last colour: the slow half of a space
#: would take all the colours.
_SLOWEST_SHADE = 4.0


def slices(
    measurements: Iterable[Measurement], *, marked: Mapping[str, KernelConfig] | None = None
) -> go.Figure:
    """Latency over each parameter that has more than one value; a line joins the best of each.

    Args:
        measurements: Of one shape, in any order; those that were not timed are left out.
        marked: Configurations to mark by name: ``default`` and ``tuned`` have their own colours.
    """
    timed = [one for one in measurements if one.samples_us]
    axes = varied(timed)
    best = {name: _best_of_values(timed, name) for name in axes}
    traces: list[dict[str, Any]] = []
    layout: dict[str, Any] = {}
    for number, name in enumerate(axes):
        place = {"xaxis": "x" if number == 0 else f"x{number + 1}", "yaxis": "y"}
        traces.append(_slice_points(timed, name) | place)
        traces.append(_best_line(best[name]) | place)
        traces += [one | place for one in _marks(timed, name, marked or {}, first=number == 0)]
        layout["xaxis" if number == 0 else f"xaxis{number + 1}"] = {
            "domain": _domain(number, len(axes)),
            "title": {"text": name},
            "tickangle": 0,
            "type": "category",
            "categoryorder": "array",
            "categoryarray": list(map(str, axes[name])),
        }
    first = layout.pop("xaxis", {})
    return figure(traces, x=first, y=latency_axis(one.latency_us for one in timed), **layout)


def varied(measurements: Iterable[Measurement]) -> dict[str, list[int]]:
    """The parameters of which there is more than one value, with their values in order."""
    configs = [one.config.as_dict() for one in measurements]
    axes = {name: sorted({config[name] for config in configs}) for name in (configs or [{}])[0]}
    return {name: values for name, values in axes.items() if len(values) > 1}


def _best_of_values(timed: Iterable[Measurement], name: str) -> dict[int, float]:
    best: dict[int, float] = {}
    for one in timed:
        value = one.config.as_dict()[name]
        best[value] = min(one.latency_us, best.get(value, math.inf))
    return dict(sorted(best.items()))


def _slice_points(timed: Sequence[Measurement], name: str) -> dict[str, Any]:
    return {
        "type": "scatter",
        "mode": "markers",
        "showlegend": False,
        "x": [str(one.config.as_dict()[name]) for one in timed],
        "y": rounded(one.latency_us for one in timed),
        "marker": {"size": 6, "color": OTHER, "opacity": 0.5},
        "hovertemplate": f"{name} %{{x}}: %{{y}} µs<extra></extra>",
    }


def _best_line(best: Mapping[int, float]) -> dict[str, Any]:
    return {
        "type": "scatter",
        "mode": "lines",
        "showlegend": False,
        "x": list(map(str, best)),
        "y": rounded(best.values()),
        "line": {"color": CHOSEN},
        "hovertemplate": "best at %{x}: %{y} µs<extra></extra>",
    }


def _marks(
    timed: Iterable[Measurement], name: str, marked: Mapping[str, KernelConfig], *, first: bool
) -> list[dict[str, Any]]:
    known = {one.config: one.latency_us for one in timed}
    colours = {"default": DEFAULT, "tuned": CHOSEN}
    return [
        {
            "type": "scatter",
            "mode": "markers",
            "name": title,
            "legendgroup": title,
            "showlegend": first,
            "x": [str(config.as_dict()[name])],
            "y": rounded([known[config]]),
            "marker": {
                "size": 11,
                "symbol": "diamond",
                "color": colours.get(title, BAD),
                "line": {"width": 1.5, "color": "white"},
            },
            "hovertemplate": f"{title}: %{{y}} µs<extra></extra>",
        }
        for title, config in marked.items()
        if config in known
    ]


def _domain(number: int, count: int) -> list[float]:
    width = (1 - _GAP * (count - 1)) / count
    start = number * (width + _GAP)
    return [round(start, 4), round(min(1.0, start + width), 4)]


def parallel(measurements: Iterable[Measurement]) -> go.Figure:
    """Every configuration that was timed, as a line through its values to its latency.

    Args:
        measurements: Of one shape, in any order.
    """
    timed = sorted((one for one in measurements if one.samples_us), key=lambda m: -m.latency_us)
    dimensions = [_parallel_axis(timed, name, values) for name, values in varied(timed).items()]
    logs = [math.log10(one.latency_us) for one in timed]
    low, high = min(logs, default=0.0), max(logs, default=1.0)
    ticks = log_ticks(10**low, 10**high) or [10**low]
    dimensions.append(
        {
            "label": "µs",
            "values": rounded(logs),
            "tickvals": [math.log10(tick) for tick in ticks],
            "ticktext": [f"{tick:g}" for tick in ticks],
        }
    )
    lines = {
        "type": "parcoords",
        "dimensions": dimensions,
        "line": {
            "color": rounded(logs),
            "colorscale": [[0, CHOSEN], [0.5, OTHER], [1, DEFAULT]],
            "cmin": low,
            "cmax": min(high, low + math.log10(_SLOWEST_SHADE)),
        },
    }
    return figure([lines], margin={"l": 60, "r": 40, "t": 50, "b": 20})


def _parallel_axis(
    timed: Iterable[Measurement], name: str, values: Sequence[int]
) -> dict[str, Any]:
    """An axis on which the values are evenly spaced."""
    return {
        "label": name,
        "values": [values.index(one.config.as_dict()[name]) for one in timed],
        "tickvals": list(range(len(values))),
        "ticktext": list(map(str, values)),
    }


def interaction(measurements: Iterable[Measurement], x: str, y: str) -> go.Figure:
    """The best latency at each pair of values of two parameters, as times the best of all.

    Args:
        measurements: Of one shape, in any order.
        x: A parameter.
        y: Another.
    """
    best: dict[tuple[int, int], float] = {}
    for one in measurements:
        if one.samples_us:
            config = one.config.as_dict()
            pair = (config[x], config[y])
            best[pair] = min(one.latency_us, best.get(pair, math.inf))
    columns, rows = (sorted({pair[side] for pair in best}) for side in (0, 1))
    least = min(best.values(), default=1.0)
    cells = [[best.get((column, row)) for column in columns] for row in rows]
    times = [[None if us is None else round(us / least, 3) for us in row] for row in cells]
    heat = {
        "type": "heatmap",
        "x": list(map(str, columns)),
        "y": list(map(str, rows)),
        "z": times,
        "zmin": 1,
        "zmax": _SLOWEST_SHADE / 2,
        "colorscale": [[0, CELLS[2]], [1, CELLS[1]]],
        "texttemplate": "%{z:.2f}",
        "textfont": {"color": CELL_TEXT},
        "colorbar": {"title": {"text": "times the best"}},
        "hovertemplate": f"{x} %{{x}}, {y} %{{y}}: %{{z}} times the best<extra></extra>",
    }
    return figure(
        [heat],
        x={"title": {"text": x}, "type": "category"},
        y={"title": {"text": y}, "type": "category"},
    )
