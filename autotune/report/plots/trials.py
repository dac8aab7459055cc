"""Figures of the trials of one shape: what was timed, how it ended, what it led to."""

from __future__ import annotations

import statistics
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from autotune.choose.selection import Selection
from autotune.launch.config import KernelConfig
from autotune.measure import Measurement, Outcome
from autotune.report.intervals import MedianInterval
from autotune.report.plots.figures import (
    CHOSEN,
    DEFAULT,
    OTHER,
    OUTCOME_COLOURS,
    OUTCOME_NAMES,
    config_text,
    figure,
    latency_axis,
    rounded,
)

if TYPE_CHECKING:
    import plotly.graph_objects as go

#: Pixels of a bar or a row of dots, and of what is above and below them.
_ROW, _AROUND = 30, 90


def finalists(selection: Selection, *, floor_us: float | None = None) -> go.Figure:
    """What was timed side by side: each median with its 95 % interval, the fastest on top.

    Args:
        selection: Whose finalists.
        floor_us: The roofline's latency, microseconds; a line is drawn there.
    """
    fastest_first = sorted(
        selection.samples_us.items(), key=lambda pair: statistics.median(pair[1])
    )
    traces = []
    for number, (config, samples) in enumerate(fastest_first, start=1):
        name, colour = _role(config, selection)
        interval = MedianInterval.of(samples)
        row = f"{name} ({number})" if name == "other" else name
        traces.append(
            {
                "type": "scatter",
                "mode": "markers",
                "x": rounded([interval.median]),
                "y": [row],
                "error_x": _whiskers(interval),
                "marker": {"size": 11, "color": colour},
                "hovertemplate": f"%{{x}} µs, {len(samples)} samples<br>{config_text(config)}"
                f"<extra>{row}</extra>",
            }
        )
    lines = [] if floor_us is None else [_vertical(floor_us, "roofline")]
    return figure(
        traces,
        x={"title": {"text": "µs per launch, median and 95 % interval"}},
        y={"autorange": "reversed", "type": "category"},
        height=_AROUND + _ROW * len(traces),
        showlegend=False,
        shapes=[line for line, _ in lines],
        annotations=[text for _, text in lines],
    )


def _role(config: KernelConfig, selection: Selection) -> tuple[str, str]:
    if config == selection.config:
        return ("default, kept" if selection.is_default else "tuned"), CHOSEN
    return ("default", DEFAULT) if config == selection.default else ("other", OTHER)


def _whiskers(interval: MedianInterval) -> dict[str, Any]:
    return {
        "type": "data",
        "symmetric": False,
        "array": rounded([interval.high - interval.median]),
        "arrayminus": rounded([interval.median - interval.low]),
        "thickness": 2,
        "width": 6,
    }


def _vertical(x: float, text: str) -> tuple[dict[str, Any], dict[str, Any]]:
    """A dotted line over the whole height, and the text on top of it."""
    line = {"type": "line", "x0": x, "x1": x, "yref": "paper", "y0": 0, "y1": 1}
    label = {"x": x, "yref": "paper", "y": 1, "yanchor": "bottom", "showarrow": False}
    return line | {"line": {"dash": "dot", "color": OTHER}}, label | {"text": text}


def convergence(
    measurements: Sequence[Measurement],
    *,
    default_us: float | None = None,
    floor_us: float | None = None,
) -> go.Figure:
    """The best latency so far over the trials, every trial that was timed, and the default's line.

    Args:
        measurements: Of one shape, in the order in which they were made.
        default_us: The default's latency, microseconds.
        floor_us: The roofline's, likewise.
    """
    traces = []
    for outcome, symbol in ((Outcome.TOO_SLOW, "circle-open"), (Outcome.OK, "circle")):
        timed = [(n, m) for n, m in enumerate(measurements, start=1) if m.outcome is outcome]
        traces.append(
            {
                "type": "scatter",
                "mode": "markers",
                "name": "timed in full" if outcome is Outcome.OK else OUTCOME_NAMES[outcome],
                "x": [number for number, _ in timed],
                "y": rounded(one.latency_us for _, one in timed),
                "text": [config_text(one.config) for _, one in timed],
                "hovertemplate": "trial %{x}: %{y} µs<br>%{text}<extra></extra>",
                "marker": {"size": 6, "color": OUTCOME_COLOURS[outcome], "symbol": symbol},
            }
        )
    numbers, best = _best_so_far(measurements)
    traces.append(_line("best so far", numbers, best, color=CHOSEN, shape="hv"))
    ends = [1, len(measurements)]
    if default_us is not None:
        traces.append(_line("vLLM's default", ends, [default_us] * 2, color=DEFAULT, dash="dash"))
    if floor_us is not None:
        traces.append(_line("roofline", ends, [floor_us] * 2, color=OTHER, dash="dot"))
    drawn = [one.latency_us for one in measurements if one.samples_us]
    drawn += [us for us in (default_us, floor_us) if us is not None]
    return figure(traces, x={"title": {"text": "trial"}}, y=latency_axis(drawn))


def _best_so_far(measurements: Iterable[Measurement]) -> tuple[list[int], list[float]]:
    """Where the best latency of those timed in full changes, and the last trial."""
    numbers: list[int] = []
    best: list[float] = []
    number = 0
    for number, one in enumerate(measurements, start=1):
        if one.outcome is Outcome.OK and (not best or one.latency_us < best[-1]):
            numbers.append(number)
            best.append(one.latency_us)
    if best:
        numbers.append(number)
        best.append(best[-1])
    return numbers, best


def _line(name: str, x: Sequence[float], y: Sequence[float], **line: str) -> dict[str, Any]:
    trace = {"type": "scatter", "mode": "lines", "name": name, "x": list(x), "y": rounded(y)}
    return trace | {"line": line, "hovertemplate": "%{y} µs"}


def outcomes(measurements: Iterable[Measurement]) -> go.Figure:
    """How many configurations of a shape ended in which outcome."""
    counts = Counter(one.outcome for one in measurements)
    ended = [outcome for outcome in Outcome if counts[outcome]]
    bars = {
        "type": "bar",
        "orientation": "h",
        "y": [OUTCOME_NAMES[outcome] for outcome in ended],
        "x": [counts[outcome] for outcome in ended],
        "text": [counts[outcome] for outcome in ended],
        "marker": {"color": [OUTCOME_COLOURS[outcome] for outcome in ended]},
        "hovertemplate": "%{y}: %{x}<extra></extra>",
    }
    return figure(
        [bars],
        x={"title": {"text": "configurations"}},
        y={"autorange": "reversed"},
        height=_AROUND + _ROW * len(ended),
    )


def importance(shares: Mapping[str, float]) -> go.Figure:
    """How much each parameter matters, the most on top.

    Args:
        shares: Per parameter its share, from 0 to 1, as ``search.importance.importances`` says.
    """
    ordered = sorted(shares.items(), key=lambda pair: -pair[1])
    bars = {
        "type": "bar",
        "orientation": "h",
        "y": [name for name, _ in ordered],
        "x": rounded(share for _, share in ordered),
        "text": [f"{share:.0%}" for _, share in ordered],
        "marker": {"color": CHOSEN},
        "hovertemplate": "%{y}: %{text}<extra></extra>",
    }
    return figure(
        [bars],
        x={"tickformat": ".0%", "title": {"text": "share of the importance"}},
        y={"autorange": "reversed"},
        height=_AROUND + _ROW * len(ordered),
    )
