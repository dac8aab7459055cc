"""The figure of ``bench --server``: tokens a second over requests, by each server."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from autotune.report.plots.figures import CHOSEN, DEFAULT, OTHER, dots, figure, rounded

if TYPE_CHECKING:
    import plotly.graph_objects as go

#: By the servers' names, their colours and whether the line is dashed.
_LOOKS = {
    "default": (DEFAULT, "solid"),
    "default again": (DEFAULT, "dot"),
    "folder": (CHOSEN, "solid"),
    "no LoRA": (OTHER, "dash"),
}


def servers_plot(curves: Mapping[str, Sequence[tuple[int, float]]]) -> go.Figure:
    """Output tokens a second over the number of requests that run at once.

    Args:
        curves: By server, pairs of the number of requests and its output tokens a second.
    """
    traces = []
    for name, points in curves.items():
        colour, dash = _LOOKS.get(name.partition(",")[0], (OTHER, "solid"))
        look = {"name": name, "mode": "lines+markers", "line": {"color": colour, "dash": dash}}
        requests, rates = [each[0] for each in points], [each[1] for each in points]
        hover = "%{x} requests: %{y:.0f} a second"
        traces.append(dots(requests, rounded(rates), hover=hover, **look))
    return figure(
        traces,
        x={"title": {"text": "requests at once"}, "type": "log"},
        y={"title": {"text": "output tokens a second"}, "type": "log"},
    )


def write_servers_plot(curves: Mapping[str, Sequence[tuple[int, float]]], path: Path) -> None:
    """Write ``servers_plot`` as an HTML file that needs no network."""
    servers_plot(curves).write_html(path, include_plotlyjs=True)
