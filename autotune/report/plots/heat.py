"""Heat maps: a cell for each row and column, with its value written in it."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from autotune.report.plots.figures import CELLS, CHOSEN, DEFAULT, Part, escaped, figure, rows_height

if TYPE_CHECKING:
    import plotly.graph_objects as go

#: A factor of this size or more has the full colour; few are larger.
_FULL_COLOUR = 3.0


def heat_map(
    rows: Sequence[str],
    columns: Sequence[object],
    cells: Sequence[Sequence[float | None]],
    *,
    title: str,
    **look: Any,  # noqa: ANN401 - plotly's values are of all kinds
) -> go.Figure:
    """A heat map whose missing cells stay empty.

    Args:
        rows: The names of the rows, from the top.
        columns: The names of the columns, from the left.
        cells: The values of each row, None where one is missing.
        title: What the columns are.
        look: More of the trace, such as its texts and colours.
    """
    heat: Part = {
        "type": "heatmap",
        "x": list(map(str, columns)),
        "y": list(map(escaped, rows)),
        "z": list(map(list, cells)),
        "xgap": 2,
        "ygap": 2,
        "texttemplate": "%{text}",
    }
    return figure(
        [heat | look],
        x={"title": {"text": title}, "type": "category", "showgrid": False},
        y={"type": "category", "autorange": "reversed", "showgrid": False},
        height=rows_height(len(rows)),
    )


def doublings(cells: Sequence[Sequence[float | None]]) -> list[list[float | None]]:
    """Factors as logarithms to base 2, so that twice and half have colours of equal strength."""
    return [[None if cell is None else round(math.log2(cell), 3) for cell in row] for row in cells]


def factor_bar(ticks: Sequence[float]) -> Part:
    """The colour bar of a map of ``doublings``, with these factors as its ticks."""
    places, texts = [math.log2(tick) for tick in ticks], [f"{tick:g}x" for tick in ticks]
    return {"tickvals": places, "ticktext": texts, "thickness": 12}


def factor_map(
    cells: Mapping[Any, Mapping[Any, float]],
    title: str,
    *,
    columns: Sequence[Any],
    is_loss: bool = False,
) -> go.Figure:
    """Factors of 1 or more as a heat map.

    Args:
        cells: The factors by row, from the top, and by column.
        title: What the columns are.
        columns: From the left.
        is_loss: Whether a large factor is bad.
    """
    rows = [[row.get(name) for name in columns] for row in cells.values()]
    return heat_map(
        list(map(str, cells)),
        columns,
        doublings(rows),
        title=title,
        text=[["" if cell is None else f"{cell:.2f}" for cell in row] for row in rows],
        hovertemplate="%{y}: %{x} %{text}<extra></extra>",
        zmin=0,
        zmax=math.log2(_FULL_COLOUR),
        colorscale=[[0, CELLS[1]], [1, DEFAULT if is_loss else CHOSEN]],
        colorbar=factor_bar((1, 1.5, 2, _FULL_COLOUR)),
    )
