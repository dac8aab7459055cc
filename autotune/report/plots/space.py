"""Figures of the space of one shape: latency over the parameters."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from autotune.launch.config import KernelConfig
from autotune.measure import Measurement
from autotune.report.axes import varied
from autotune.report.plots.figures import (
    BAD,
    CELL_TEXT,
    CELLS,
    CHOSEN,
    DEFAULT,
    OTHER,
    Part,
    dots,
    figure,
    latency_axis,
    line,
    log_ticks,
    rounded,
)

if TYPE_CHECKING:
    import plotly.graph_objects as go

#: The gap between two slices, as a share of the figure's width.
_GAP = 0.035

#: Latencies of this many times the best or more have the last colour: without a limit, the slow
#: half of a space would take most of the colours.
_SLOWEST_SHADE = 4.0


def slices(
    measurements: Iterable[Measurement], *, marked: Mapping[str, KernelConfig] | None = None
) -> go.Figure:
    """Latency over each parameter that has more than one value; a line joins the best of each.

    Args:
        measurements: Of one shape, in any order; configurations that were not timed are left out.
        marked: Configurations to mark by name: ``default`` and ``tuned`` have their own colours.
    """
    timed = [one for one in measurements if one.samples_us]
    axes = varied(one.config for one in timed)
    traces: list[Part] = []
    x_axes: dict[str, Any] = {}
    for number, (name, values) in enumerate(axes.items()):
        own = "" if number == 0 else str(number + 1)  # plotly's axes are x, x2, x3, …
        those = [
            _slice_dots(timed, name),
            _best_line(timed, name),
            *_marks(timed, name, marked or {}, first=number == 0),
        ]
        traces += [one | {"xaxis": f"x{own}", "yaxis": "y"} for one in those]
        x_axes[f"xaxis{own}"] = _slice_axis(name, values, _domain(number, len(axes)))
    first = x_axes.pop("xaxis", {})
    return figure(traces, x=first, y=latency_axis(one.latency_us for one in timed), **x_axes)


def _slice_axis(name: str, values: Iterable[int], domain: list[float]) -> Part:
    return {
        "domain": domain,
        "title": {"text": name},
        "tickangle": 0,
        "type": "category",
        "categoryorder": "array",
        "categoryarray": list(map(str, values)),
    }


def _slice_dots(timed: Sequence[Measurement], name: str) -> Part:
    return dots(
        [str(one.config.as_dict()[name]) for one in timed],
        rounded(one.latency_us for one in timed),
        hover=f"{name} %{{x}}: %{{y}} µs<extra></extra>",
        showlegend=False,
        marker={"size": 6, "color": OTHER, "opacity": 0.5},
    )


def _best_line(timed: Iterable[Measurement], name: str) -> Part:
    best = {value: us for (value,), us in sorted(_best_us(timed, name).items())}
    return line(
        list(map(str, best)),
        best.values(),
        hover="best at %{x}: %{y} µs<extra></extra>",
        showlegend=False,
        line={"color": CHOSEN},
    )


def _best_us(timed: Iterable[Measurement], *names: str) -> dict[tuple[int, ...], float]:
    """The lowest latency at each combination of values of these parameters, microseconds."""
    best: dict[tuple[int, ...], float] = {}
    for one in timed:
        config = one.config.as_dict()
        values = tuple(config[name] for name in names)
        best[values] = min(one.latency_us, best.get(values, math.inf))
    return best


def _marks(
    timed: Iterable[Measurement], name: str, marked: Mapping[str, KernelConfig], *, first: bool
) -> list[Part]:
    known = {one.config: one.latency_us for one in timed}
    colours = {"default": DEFAULT, "tuned": CHOSEN}
    return [
        dots(
            [str(config.as_dict()[name])],
            rounded([known[config]]),
            hover=f"{title}: %{{y}} µs<extra></extra>",
            name=title,
            legendgroup=title,
            showlegend=first,
            marker={
                "size": 11,
                "symbol": "diamond",
                "color": colours.get(title, BAD),
                "line": {"width": 1.5, "color": "white"},
            },
        )
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
    axes = varied(one.config for one in timed)
    logs = [math.log10(one.latency_us) for one in timed]
    low, high = min(logs, default=0.0), max(logs, default=1.0)
    lines = {
        "type": "parcoords",
        "dimensions": [
            *(_parallel_axis(timed, name, values) for name, values in axes.items()),
            _parallel_latency(logs, log_ticks(10**low, 10**high) or [10**low]),
        ],
        "line": {
            "color": rounded(logs),
            "colorscale": [[0, CHOSEN], [0.5, OTHER], [1, DEFAULT]],
            "cmin": low,
            "cmax": min(high, low + math.log10(_SLOWEST_SHADE)),
        },
    }
    return figure([lines], margin={"l": 60, "r": 40, "t": 50, "b": 20})


def _parallel_axis(timed: Iterable[Measurement], name: str, values: Sequence[int]) -> Part:
    """An axis on which the values are evenly spaced."""
    return {
        "label": name,
        "values": [values.index(one.config.as_dict()[name]) for one in timed],
        "tickvals": list(range(len(values))),
        "ticktext": list(map(str, values)),
    }


def _parallel_latency(logs: Iterable[float], ticks: Sequence[float]) -> Part:
    """The axis of latencies, given as logarithms to base 10; the ticks are microseconds."""
    return {
        "label": "µs",
        "values": rounded(logs),
        "tickvals": [math.log10(tick) for tick in ticks],
        "ticktext": [f"{tick:g}" for tick in ticks],
    }


def interaction(measurements: Iterable[Measurement], x: str, y: str) -> go.Figure:
    """The best latency at each pair of values of two parameters, as times the best of all.

    Args:
        measurements: Of one shape, in any order.
        x: The parameter from left to right.
        y: The parameter from bottom to top.
    """
    best = _best_us((one for one in measurements if one.samples_us), x, y)
    columns, rows = (sorted({pair[side] for pair in best}) for side in (0, 1))
    least = min(best.values(), default=1.0)
    times = {pair: round(us / least, 3) for pair, us in best.items()}
    heat = {
        "type": "heatmap",
        "x": list(map(str, columns)),
        "y": list(map(str, rows)),
        "z": [[times.get((column, row)) for column in columns] for row in rows],
        "zmin": 1,
        "zmax": _SLOWEST_SHADE / 2,
        "colorscale": [[0, CELLS[2]], [1, CELLS[1]]],
        "texttemplate": "%{z:.2f}",
        "textfont": {"color": CELL_TEXT},
        "colorbar": {"title": {"text": "times the best"}},
        "hovertemplate": f"{x} %{{x}}, {y} %{{y}}: %{{z}} times the best<extra></extra>",
    }
    axes = [{"title": {"text": name}, "type": "category"} for name in (x, y)]
    return figure([heat], x=axes[0], y=axes[1])
