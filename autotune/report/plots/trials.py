"""Figures of the trials of one shape: latencies, outcomes, finalists, and importances."""

from __future__ import annotations

import statistics
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING

from autotune.choose.selection import Selection
from autotune.launch.config import KernelConfig
from autotune.measure import Measurement, Outcome
from autotune.report.intervals import MedianInterval
from autotune.report.plots.figures import (
    CHOSEN,
    DEFAULT,
    OTHER,
    OUTCOME_COLOURS,
    Part,
    bars,
    dots,
    down,
    figure,
    latency_axis,
    line,
    rounded,
)
from autotune.report.words import OUTCOME_NAMES, config_text

if TYPE_CHECKING:
    import plotly.graph_objects as go

#: Pixels of a bar or a row of dots, and of what is above and below the rows.
_ROW, _AROUND = 30, 90


def finalists(selection: Selection, *, floor_us: float | None = None) -> go.Figure:
    """The finalists, fastest on top: each median with its 95 % interval.

    Args:
        selection: The choice, with the samples of its finalists.
        floor_us: The roofline's latency, microseconds; a line is drawn there.
    """
    by_median = sorted(selection.samples_us.items(), key=lambda pair: statistics.median(pair[1]))
    traces = []
    for number, (config, samples) in enumerate(by_median, start=1):
        name, colour = _role(config, selection)
        traces.append(
            _finalist(f"{name} ({number})" if name == "other" else name, colour, config, samples)
        )
    known = [] if floor_us is None else [floor_us]
    return figure(
        traces,
        x={"title": {"text": "µs per launch, median and 95 % interval"}},
        y={"autorange": "reversed", "type": "category"},
        height=_AROUND + _ROW * len(traces),
        showlegend=False,
        shapes=[down(us) for us in known],
        annotations=[_above(us, "roofline") for us in known],
    )


def _finalist(row: str, colour: str, config: KernelConfig, samples: Sequence[float]) -> Part:
    interval = MedianInterval.of(samples)
    facts = f"%{{x}} µs, {len(samples)} samples<br>{config_text(config)}"
    return dots(
        rounded([interval.median]),
        [row],
        hover=f"{facts}<extra>{row}</extra>",
        error_x=_whiskers(interval),
        marker={"size": 11, "color": colour},
    )


def _role(config: KernelConfig, selection: Selection) -> tuple[str, str]:
    if config == selection.config:
        return ("default, kept" if selection.is_default else "tuned"), CHOSEN
    return ("default", DEFAULT) if config == selection.default else ("other", OTHER)


def _whiskers(interval: MedianInterval) -> Part:
    return {
        "type": "data",
        "symmetric": False,
        "array": rounded([interval.high - interval.median]),
        "arrayminus": rounded([interval.median - interval.low]),
        "thickness": 2,
        "width": 6,
    }


def _above(x: float, text: str) -> Part:
    """A text above the figure."""
    place = {"x": x, "yref": "paper", "y": 1, "yanchor": "bottom", "showarrow": False}
    return place | {"text": text}


def convergence(
    measurements: Sequence[Measurement],
    *,
    default_us: float | None = None,
    floor_us: float | None = None,
) -> go.Figure:
    """Every trial that was timed, the best latency so far, and the default's latency.

    Args:
        measurements: Of one shape, in the order in which they were made.
        default_us: The default's latency, microseconds; a line is drawn there.
        floor_us: The roofline's latency, microseconds; a line is drawn there.
    """
    numbers, best = _best_so_far(measurements)
    traces = [
        _trial_dots(measurements, Outcome.TOO_SLOW, name="cut short", symbol="circle-open"),
        _trial_dots(measurements, Outcome.OK, name="timed in full", symbol="circle"),
        _line("best so far", numbers, best, color=CHOSEN, shape="hv"),
    ]
    ends = [1, len(measurements)]
    if default_us is not None:
        traces.append(_line("vLLM's default", ends, [default_us] * 2, color=DEFAULT, dash="dash"))
    if floor_us is not None:
        traces.append(_line("roofline", ends, [floor_us] * 2, color=OTHER, dash="dot"))
    drawn = [one.latency_us for one in measurements if one.samples_us]
    drawn += [us for us in (default_us, floor_us) if us is not None]
    return figure(traces, x={"title": {"text": "trial"}}, y=latency_axis(drawn))


def _trial_dots(
    measurements: Iterable[Measurement], outcome: Outcome, *, name: str, symbol: str
) -> Part:
    """The trials that ended in one outcome, by their number."""
    timed = [(n, one) for n, one in enumerate(measurements, start=1) if one.outcome is outcome]
    return dots(
        [number for number, _ in timed],
        rounded(one.latency_us for _, one in timed),
        hover="trial %{x}: %{y} µs<br>%{text}<extra></extra>",
        name=name,
        text=[config_text(one.config) for _, one in timed],
        marker={"size": 6, "color": OUTCOME_COLOURS[outcome], "symbol": symbol},
    )


def _best_so_far(measurements: Iterable[Measurement]) -> tuple[list[int], list[float]]:
    """Where the best latency of trials timed in full changes, and the last trial."""
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


def _line(name: str, x: Sequence[float], y: Iterable[float], **look: str) -> Part:
    return line(x, y, hover="%{y} µs", name=name, line=look)


def outcomes(measurements: Iterable[Measurement]) -> go.Figure:
    """How many configurations of a shape ended in each outcome."""
    counts = Counter(one.outcome for one in measurements)
    ended = [outcome for outcome in Outcome if counts[outcome]]
    return _bars(
        bars(
            [counts[outcome] for outcome in ended],
            [OUTCOME_NAMES[outcome] for outcome in ended],
            hover="%{y}: %{x}<extra></extra>",
            text=[counts[outcome] for outcome in ended],
            marker={"color": [OUTCOME_COLOURS[outcome] for outcome in ended]},
        ),
        {"title": {"text": "configurations"}},
    )


def importance(shares: Mapping[str, float]) -> go.Figure:
    """How much each parameter matters, the largest share on top.

    Args:
        shares: By parameter, its share from 0 to 1 (``autotune.search.importance``).
    """
    ordered = sorted(shares.items(), key=lambda pair: -pair[1])
    return _bars(
        bars(
            rounded(share for _, share in ordered),
            [name for name, _ in ordered],
            hover="%{y}: %{text}<extra></extra>",
            text=[f"{share:.0%}" for _, share in ordered],
            marker={"color": CHOSEN},
        ),
        {"tickformat": ".0%", "title": {"text": "share of the importance"}},
    )


def _bars(trace: Part, x: Part) -> go.Figure:
    """One trace of bars, the first on top."""
    height = _AROUND + _ROW * len(trace["y"])
    return figure([trace], x=x, y={"autorange": "reversed"}, height=height)
