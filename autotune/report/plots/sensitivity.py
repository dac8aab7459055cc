"""Figures of what each parameter is worth, over many shapes."""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import fields
from typing import TYPE_CHECKING, Any

from autotune.launch.config import KernelConfig
from autotune.launch.sizes import sizes_text
from autotune.report.plots.figures import CHOSEN, DEFAULT, OTHER, escaped, figure, rounded
from autotune.report.sensitivity import Sensitivity

if TYPE_CHECKING:
    import plotly.graph_objects as go

#: Pixels of a row of cells or dots, and of what is above and below them.
_ROW, _AROUND = 26, 110

#: The colours of a factor end here; few are larger.
_FULL_COLOUR = 3.0

_TICKS = (0.5, 0.7, 1, 1.5, 2, 3, 4, 6, 8)

_NOTHING = "#eef1f5"


def gain_map(found: Sequence[Sensitivity]) -> go.Figure:
    """How many times as fast as the base each shape gets by each parameter alone."""
    cells = {name: one.gains for name, one in _named(found).items()}
    return factor_map(cells, "parameter that is changed", columns=_parameters(found))


def loss_map(found: Sequence[Sensitivity]) -> go.Figure:
    """How many times as slow as the best each shape stays where a parameter is left as it is."""
    cells = {name: one.losses for name, one in _named(found).items()}
    return factor_map(cells, "parameter that is left", columns=_parameters(found), is_loss=True)


def importance_shares(
    found: Sequence[Sensitivity],
) -> dict[tuple[str, int], Mapping[str, float]]:
    """What ``plots.importance_map`` takes: by sizes and number of tokens each parameter's share."""
    kernels = _kernels_of(found)
    return {
        (sizes_text(one.shape) + kernels[one.kernels], one.shape.num_tokens): one.importance
        for one in found
    }


def _named(found: Sequence[Sensitivity]) -> dict[str, Sensitivity]:
    """The shapes by their names, and by whose kernels they ran where there are several."""
    kernels = _kernels_of(found)
    return {one.name + kernels[one.kernels]: one for one in found}


def _kernels_of(found: Iterable[Sensitivity]) -> dict[str, str]:
    names = {one.kernels for one in found}
    return {name: f", {name}" if len(names) > 1 else "" for name in names}


def pair_map(found: Sequence[Sensitivity]) -> go.Figure:
    """How many times as fast as the base shapes get by each pair: the geometric mean over them.

    On the diagonal is what each parameter gains alone. One of which a shape has a single value
    gains nothing there.
    """
    names = _parameters(found)
    gains = {
        row: {
            column: statistics.geometric_mean(_pair_gain(one, row, column) for one in found)
            for column in names
        }
        for row in names
    }
    return factor_map(gains, "parameters that are changed", columns=names)


def _pair_gain(one: Sensitivity, first: str, second: str) -> float:
    for pair in ((first, second), (second, first)):
        if pair in one.pair_gains:
            return one.pair_gains[pair]
    return max(one.gains.get(name, 1.0) for name in (first, second))


def _parameters(found: Iterable[Sensitivity]) -> list[str]:
    there = {name for one in found for name in one.alone_us}
    return [each.name for each in fields(KernelConfig) if each.name in there]


def factor_map(
    cells: Mapping[Any, Mapping[Any, float]],
    title: str,
    *,
    columns: Sequence[Any],
    is_loss: bool = False,
) -> go.Figure:
    """Factors of 1 or more as a map; what is missing stays empty.

    Args:
        cells: By row, from the top, and column.
        title: Of the columns.
        columns: From the left.
        is_loss: Whether a large factor is bad.
    """
    rows = [[row.get(name) for name in columns] for row in cells.values()]
    ticks = (1, 1.5, 2, _FULL_COLOUR)
    heat = {
        "type": "heatmap",
        "x": list(map(str, columns)),
        "y": [escaped(str(name)) for name in cells],
        "z": [[None if cell is None else round(math.log2(cell), 3) for cell in r] for r in rows],
        "text": [["" if cell is None else f"{cell:.2f}" for cell in row] for row in rows],
        "texttemplate": "%{text}",
        "hovertemplate": "%{y}: %{x} %{text}<extra></extra>",
        "xgap": 2,
        "ygap": 2,
        "zmin": 0,
        "zmax": math.log2(_FULL_COLOUR),
        "colorscale": [[0, _NOTHING], [1, DEFAULT if is_loss else CHOSEN]],
        "colorbar": {
            "tickvals": [math.log2(tick) for tick in ticks],
            "ticktext": [f"{tick:g}x" for tick in ticks],
            "thickness": 12,
        },
    }
    return figure(
        [heat],
        x={"title": {"text": title}, "type": "category", "showgrid": False},
        y={"type": "category", "autorange": "reversed", "showgrid": False},
        height=_AROUND + _ROW * len(cells),
    )


def steps(found: Sequence[Sensitivity]) -> go.Figure:
    """How far the base, one change and two changes come from the default to the best.

    Shapes whose default does not run are left out.
    """
    named = _named(found)
    known = [(one, one.default_us) for one in named.values() if one.default_us is not None]
    names = [name for name, one in named.items() if one.default_us is not None]
    sides = {
        "nearest in the space": [us / one.base_us for one, us in known],
        "one parameter changed": [us / min(_us(one.alone_us, one)) for one, us in known],
        "two parameters changed": [us / min(_us(one.pairs_us, one)) for one, us in known],
        "best of all": [us / one.best_us for one, us in known],
    }
    looks: list[dict[str, Any]] = [
        {"color": OTHER, "symbol": "circle-open"},
        {"color": DEFAULT, "symbol": "diamond"},
        {"color": DEFAULT, "symbol": "square-open"},
        {"color": CHOSEN, "symbol": "circle"},
    ]
    traces = [
        {
            "type": "scatter",
            "mode": "markers",
            "name": name,
            "x": rounded(factors),
            "y": list(map(escaped, names)),
            "marker": look | {"size": 10},
            "hovertemplate": f"%{{y}}: %{{x}} times as fast as the default<extra>{name}</extra>",
        }
        for (name, factors), look in zip(sides.items(), looks, strict=True)
    ]
    whole = {"type": "line", "x0": 1, "x1": 1, "yref": "paper", "y0": 0, "y1": 1}
    return figure(
        traces,
        x={"title": {"text": "times as fast as vLLM's default"}, "type": "log", "tickvals": _TICKS},
        y={"autorange": "reversed", "type": "category"},
        height=_AROUND + _ROW * len(known),
        shapes=[whole | {"line": {"dash": "dash", "color": OTHER}}],
    )


def _us(latencies: Mapping[Any, float], one: Sensitivity) -> list[float]:
    return [one.base_us, *latencies.values()]
