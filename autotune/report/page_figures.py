"""The figures of a page, as plain values ready for JSON."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING, Any

from autotune.launch.config import KernelConfig
from autotune.report import plots
from autotune.report.records import DeviceReport, ShapeReport

if TYPE_CHECKING:
    import plotly.graph_objects as go

#: A figure's traces and layout as plain values.
Spec = dict[str, Any]


def device_figures(device: DeviceReport) -> dict[str, Spec]:
    """The figures over all shapes of a device, by name; figures without content are left out."""
    cells = {
        (one.kind, one.shape.num_tokens): None if chosen.ratio is None else chosen.ratio.value
        for one in device.shapes
        if (chosen := one.selection) is not None
    }
    found = {"speedup": _spec(plots.speedup_map(cells))} if cells else {}
    found["outcomes"] = _spec(plots.outcome_bars(_by_kind(device, "outcomes")))
    spent_s = {kind: of for kind, of in _by_kind(device, "spent_s").items() if of}
    if spent_s:
        found["time"] = _spec(plots.time_bars(spent_s))
    spans = {
        (device.kinds[shape.without_batch], shape.num_tokens): span
        for shape, span in device.searched.items()
    }
    if len(spans) > 1:
        found["line"] = _spec(plots.time_line(spans))
    losses = losses_by_kind(device)
    if losses:
        found["between"] = _spec(plots.losses_between(losses))
    return found


def shape_figures(report: ShapeReport, *, has_order: bool) -> dict[str, Spec]:
    """The figures of one shape, by name; figures without content are left out.

    Args:
        report: The shape.
        has_order: Whether the measurements are in the order in which they were made.
    """
    measured, selection, floor_us = report.result.measurements, report.selection, report.floor_us
    timed = [each for each in measured if each.samples_us]
    found = {}
    if selection is not None:
        found["finalists"] = plots.finalists(selection, floor_us=floor_us)
    if timed and has_order:
        default_us = None if report.default is None else report.default.median
        found["convergence"] = plots.convergence(measured, default_us=default_us, floor_us=floor_us)
    if measured:
        found["outcomes"] = plots.outcomes(measured)
    if report.importances:
        found["importance"] = plots.importance(report.importances)
    if len(timed) > 1:
        found["slices"] = plots.slices(timed, marked=_marked(report))
        found["parallel"] = plots.parallel(timed)
    return {name: _spec(figure) for name, figure in found.items()}


def _marked(report: ShapeReport) -> dict[str, KernelConfig]:
    """The configurations to mark in figures of the space, by name."""
    marked = {"default": report.result.default} if report.result.default else {}
    if report.selection is not None and not report.selection.is_default:
        marked["tuned"] = report.selection.config
    return marked


def losses_by_kind(device: DeviceReport) -> dict[str, dict[int, tuple[float, float]]]:
    """The losses between rows, before and now, by name of the kind and number of tokens."""
    kinds = device.kinds
    found: dict[str, dict[int, tuple[float, float]]] = {}
    for each in device.between:
        kind = kinds.get(each.shape.without_batch)
        if kind is not None:
            found.setdefault(kind, {})[each.shape.num_tokens] = (each.before, each.after)
    return found


def _by_kind(device: DeviceReport, amounts: str) -> dict[str, Counter[str]]:
    """The sums over the shapes of each kind of their ``outcomes`` or ``spent_s``."""
    found: dict[str, Counter[str]] = {}
    for one in device.shapes:
        found.setdefault(one.kind, Counter()).update(getattr(one, amounts))
    return found


def _spec(figure: go.Figure) -> Spec:
    """A figure as plain values, without the template: it is large, and the page has colours."""
    spec: Spec = figure.to_plotly_json()
    del spec["layout"]["template"]
    return spec
