"""What all figures share: colours, traces, guide lines, axes, and the layout."""

from __future__ import annotations

import html
import math
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from autotune.measure import Outcome

if TYPE_CHECKING:
    import plotly.graph_objects as go

#: A trace, an axis or another part of a figure, as plotly takes it.
Part = dict[str, Any]

#: The colours of vLLM's default, of the choice, of everything else, and of what failed. They stand
#: out from white and from near black (contrast 3:1 or more), and differ for colour-blind readers.
DEFAULT, CHOSEN, OTHER, BAD = "#d9730d", "#2f7de1", "#8b929c", "#d1435b"

#: The colours of cells for bad, neutral and good: ``CELL_TEXT`` is readable on each.
CELLS, CELL_TEXT = ("#f28b9b", "#eef1f5", "#62a4f5"), "#10151c"

#: The colours of outcomes.
OUTCOME_COLOURS = {
    Outcome.OK: CHOSEN,
    Outcome.TOO_SLOW: OTHER,
    Outcome.INVALID: "#b58900",
    Outcome.COMPILE_FAILED: "#a05ec2",
    Outcome.COMPILE_TIMEOUT: "#c792dd",
    Outcome.LAUNCH_FAILED: BAD,
    Outcome.WRONG_RESULT: "#e0218a",
    Outcome.TIMED_OUT: "#e58a97",
    Outcome.WORKER_DIED: "#7a1f2f",
}

#: Significant digits of a value in a plot: a thousandth of it cannot be seen.
_DIGITS = 4

#: The height of a figure in pixels; plotly's own 450 leaves half of a bar chart empty.
_HEIGHT = 320

#: Pixels of a row in a figure of many shapes, and of what is above and below the rows.
_ROW, _AROUND = 26, 110

_LEGEND = {"orientation": "h", "y": 1.02, "yanchor": "bottom", "x": 0, "traceorder": "normal"}


def escaped(text: str) -> str:
    """A text that plotly shows unchanged: plotly reads tags and entities in every text."""
    return html.escape(text, quote=False)


def rounded(values: Iterable[float]) -> list[float]:
    """Values with as few digits as a plot needs, which keeps pages of many plots small."""
    return [float(f"{value:.{_DIGITS}g}") for value in values]


def rows_height(count: int) -> int:
    """The height of a figure with so many rows of cells, bars or dots, in pixels."""
    return _AROUND + _ROW * count


def dots(x: Sequence[object], y: Sequence[object], *, hover: str, **look: Any) -> Part:  # noqa: ANN401 - plotly's values are of all kinds
    """A trace of dots.

    Args:
        x: From the left.
        y: As many.
        hover: What a dot shows under the pointer, as plotly's template.
        look: More of the trace.
    """
    places = {"type": "scatter", "mode": "markers", "x": list(x), "y": list(y)}
    return places | {"hovertemplate": hover} | look


def line(x: Sequence[object], y: Iterable[float], *, hover: str, **look: Any) -> Part:  # noqa: ANN401 - as above
    """A trace of a line through rounded values; the arguments are those of ``dots``."""
    return dots(x, rounded(y), hover=hover, mode="lines", **look)


def bars(amounts: Iterable[float], names: Iterable[str], *, hover: str, **look: Any) -> Part:  # noqa: ANN401 - as above
    """A trace of bars to the right, one for each name; the arguments are those of ``dots``."""
    places = {"type": "bar", "orientation": "h", "x": list(amounts), "y": list(names)}
    return places | {"hovertemplate": hover} | look


def down(x: float, *, dash: str = "dot") -> Part:
    """A guide line from the top of a figure to its bottom."""
    ends = {"type": "line", "x0": x, "x1": x, "yref": "paper", "y0": 0, "y1": 1}
    return ends | {"line": {"dash": dash, "color": OTHER}}


def across(y: float, *, dash: str = "dot") -> Part:
    """A guide line from the left of a figure to its right."""
    ends = {"type": "line", "y0": y, "y1": y, "xref": "paper", "x0": 0, "x1": 1}
    return ends | {"line": {"dash": dash, "color": OTHER}}


def log_ticks(low: float, high: float) -> list[float]:
    """Round numbers, 1, 2 and 5 in each decade, from ``low`` to ``high``, both above 0."""
    decades = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    steps = [step * 10.0**decade for decade in decades for step in (1, 2, 5)]
    return [step for step in steps if low <= step <= high]


def latency_axis(latencies_us: Iterable[float]) -> Part:
    """A logarithmic axis with round ticks; it is logarithmic as configurations differ by factors.

    Args:
        latencies_us: All latencies that are drawn, microseconds.
    """
    known = sorted(latencies_us)
    axis: Part = {"type": "log", "title": {"text": "µs per launch"}}
    if not known:
        return axis
    ticks = log_ticks(known[0] / 2, known[-1] * 2)
    return axis | {"tickvals": ticks, "ticktext": [f"{tick:g}" for tick in ticks]}


def figure(
    traces: Sequence[Mapping[str, Any]],
    *,
    x: Mapping[str, Any] | None = None,
    y: Mapping[str, Any] | None = None,
    height: int = _HEIGHT,
    **layout: Any,  # noqa: ANN401 - plotly's values are of all kinds
) -> go.Figure:
    """A plotly figure in the layout that all figures share.

    Args:
        traces: Plotly's traces.
        x: Parts of ``layout.xaxis``.
        y: Parts of ``layout.yaxis``.
        height: In pixels.
        layout: More of the layout.
    """
    import plotly.graph_objects as go

    # No template: notebooks have their own, and plotly needs 15 ms to copy one for every figure.
    shared = {
        "height": height,
        "margin": {"l": 10, "r": 10, "t": 30, "b": 10},
        "legend": _LEGEND,
        "xaxis": {"automargin": True, **(x or {})},
        "yaxis": {"automargin": True, **(y or {})},
    }
    return go.Figure({"data": list(traces), "layout": shared | layout})
