"""What the figures have in common: colours, labels, and plain parts made into plotly figures."""

from __future__ import annotations

import html
import math
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from autotune.launch.config import KernelConfig
from autotune.measure import Outcome

if TYPE_CHECKING:
    import plotly.graph_objects as go

#: Of vLLM's default, of what was chosen, and of what is neither. They stand out from white and
#: from near black alike (contrast 3:1 or more), and differ for colour-blind readers.
DEFAULT, CHOSEN, OTHER, BAD = "#d9730d", "#2f7de1", "#8b929c", "#d1435b"

#: Of cells, from bad over as good to good: light enough for ``CELL_TEXT`` on any of them.
CELLS, CELL_TEXT = ("#f28b9b", "#eef1f5", "#62a4f5"), "#10151c"

#: Of outcomes, from what is good to what is not.
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

#: How outcomes are called where people read.
OUTCOME_NAMES = {
    outcome: "cut short" if outcome is Outcome.TOO_SLOW else outcome.value.replace("_", " ")
    for outcome in Outcome
}

#: Significant digits of a figure in a plot: a thousandth of it cannot be seen.
_DIGITS = 4

#: A figure's part of a page; plotly's own 450 leaves half of a bar chart empty.
_HEIGHT = 320


def escaped(text: str) -> str:
    """A text as plotly shows it as it is: it reads tags and entities in whatever it is given."""
    return html.escape(text, quote=False)


def config_text(config: KernelConfig) -> str:
    """A configuration on one line, such as ``block_m 16, block_n 32, num_warps 4``."""
    return ", ".join(f"{name} {value}" for name, value in config.as_dict().items())


def rounded(values: Iterable[float]) -> list[float]:
    """Values as short as a plot allows; it keeps pages of many plots small."""
    return [float(f"{value:.{_DIGITS}g}") for value in values]


def log_ticks(low: float, high: float) -> list[float]:
    """Round numbers, 1, 2 and 5 in each decade, from ``low`` to ``high``, both above 0."""
    decades = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    steps = [step * 10.0**decade for decade in decades for step in (1, 2, 5)]
    return [step for step in steps if low <= step <= high]


def latency_axis(latencies_us: Iterable[float]) -> dict[str, Any]:
    """A logarithmic axis of latencies, since configurations differ by factors, with round ticks.

    Args:
        latencies_us: All that is drawn on it, microseconds.
    """
    known = sorted(latencies_us)
    axis: dict[str, Any] = {"type": "log", "title": {"text": "µs per launch"}}
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
    **layout: Any,  # noqa: ANN401 - plotly's layout, whose values are of all kinds
) -> go.Figure:
    """A plotly figure of plain parts, with what all of them share.

    Args:
        traces: Plotly's traces.
        x: Of ``layout.xaxis``.
        y: Of ``layout.yaxis``.
        height: In pixels.
        layout: More of the layout.
    """
    import plotly.graph_objects as go

    # No template: notebooks have their own, and plotly copies it for every figure, in 15 ms.
    shared: dict[str, Any] = {
        "height": height,
        "margin": {"l": 10, "r": 10, "t": 30, "b": 10},
        "legend": {
            "orientation": "h",
            "y": 1.02,
            "yanchor": "bottom",
            "x": 0,
            "traceorder": "normal",
        },
    }
    axes = {"xaxis": _axis(x or {}), "yaxis": _axis(y or {})}
    return go.Figure({"data": list(traces), "layout": shared | axes | layout})


def _axis(values: Mapping[str, Any]) -> dict[str, Any]:
    return {"automargin": True, **values}
