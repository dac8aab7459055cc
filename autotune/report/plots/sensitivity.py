"""Figures of how much each parameter gains, over many shapes."""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import fields
from typing import TYPE_CHECKING

from autotune.launch.config import KernelConfig
from autotune.launch.sizes import sizes_text
from autotune.report.plots.figures import (
    CHOSEN,
    DEFAULT,
    OTHER,
    Part,
    dots,
    down,
    escaped,
    figure,
    rounded,
    rows_height,
)
from autotune.report.plots.heat import factor_map

if TYPE_CHECKING:
    import plotly.graph_objects as go

    from autotune.report.sensitivity import Sensitivity

#: Round factors for a logarithmic axis.
_TICKS = (0.5, 0.7, 1, 1.5, 2, 3, 4, 6, 8)

#: The marker of each step from the default to the best.
_STEPS: dict[str, Part] = {
    "nearest in the space": {"color": OTHER, "symbol": "circle-open"},
    "one parameter changed": {"color": DEFAULT, "symbol": "diamond"},
    "two parameters changed": {"color": DEFAULT, "symbol": "square-open"},
    "best of all": {"color": CHOSEN, "symbol": "circle"},
}


def gain_map(found: Sequence[Sensitivity]) -> go.Figure:
    """How many times as fast as the base each shape gets by each parameter alone."""
    cells = {name: one.gains for name, one in _named(found).items()}
    return factor_map(cells, "parameter that is changed", columns=_parameters(found))


def loss_map(found: Sequence[Sensitivity]) -> go.Figure:
    """How many times as slow as the best each shape stays if a parameter is not changed."""
    cells = {name: one.losses for name, one in _named(found).items()}
    return factor_map(cells, "parameter that is left", columns=_parameters(found), is_loss=True)


def importance_shares(
    found: Sequence[Sensitivity],
) -> dict[tuple[str, int], Mapping[str, float]]:
    """The argument of ``importance_map``: each parameter's share, by sizes and tokens."""
    kernels = _kernels_of(found)
    return {
        (sizes_text(one.shape) + kernels[one.kernels], one.shape.num_tokens): one.importance
        for one in found
    }


def _named(found: Sequence[Sensitivity]) -> dict[str, Sensitivity]:
    """The shapes by name; the name says whose kernels were timed where there are several."""
    kernels = _kernels_of(found)
    return {one.name + kernels[one.kernels]: one for one in found}


def _kernels_of(found: Iterable[Sensitivity]) -> dict[str, str]:
    """What a shape's name ends with, by the kernels that were timed."""
    names = {one.kernels for one in found}
    return {name: f", {name}" if len(names) > 1 else "" for name in names}


def pair_map(found: Sequence[Sensitivity]) -> go.Figure:
    """How many times as fast as the base each pair makes shapes: the geometric mean over them.

    The diagonal shows each parameter alone. A parameter that has a single value in a shape counts
    as no gain there.
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


def steps_to_best(found: Sequence[Sensitivity]) -> go.Figure:
    """How far the base, one change and two changes lead from the default to the best.

    Shapes whose default does not run are left out.
    """
    factors = {
        name: [one.default_us / us for us in _steps_us(one)]
        for name, one in _named(found).items()
        if one.default_us is not None
    }
    names = list(map(escaped, factors))
    traces = [
        dots(
            rounded(each[step] for each in factors.values()),
            names,
            hover=f"%{{y}}: %{{x}} times as fast as the default<extra>{name}</extra>",
            name=name,
            marker=marker | {"size": 10},
        )
        for step, (name, marker) in enumerate(_STEPS.items())
    ]
    return figure(
        traces,
        x={"title": {"text": "times as fast as vLLM's default"}, "type": "log", "tickvals": _TICKS},
        y={"autorange": "reversed", "type": "category"},
        height=rows_height(len(names)),
        shapes=[down(1, dash="dash")],
    )


def _steps_us(one: Sensitivity) -> tuple[float, ...]:
    """The latency of each step of ``_STEPS``, microseconds."""
    alone_us = min(one.alone_us.values(), default=one.base_us)
    pair_us = min(one.pairs_us.values(), default=one.base_us)
    return one.base_us, min(one.base_us, alone_us), min(one.base_us, pair_us), one.best_us
