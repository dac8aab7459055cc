"""Which figures a report has, as a page keeps them: without what all of them share."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING, Any

from autotune.report import plots
from autotune.report.records import DeviceReport, ShapeReport

if TYPE_CHECKING:
    import plotly.graph_objects as go

#: A figure's traces and layout, ready for JSON.
Spec = dict[str, Any]


def device_figures(device: DeviceReport) -> dict[str, Spec]:
    """What shows all shapes of a device; a figure that would be empty is left out."""
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
    losses = losses_by_kind(device)
    if losses:
        found["between"] = _spec(plots.losses_between(losses))
    return found


def shape_figures(one: ShapeReport, *, has_order: bool) -> dict[str, Spec]:
    """What shows one shape; a figure that would be empty is left out.

    Args:
        one: The shape.
        has_order: Whether its measurements are in the order in which they were made.
    """
    measured, selection = one.result.measurements, one.selection
    timed = [each for each in measured if each.samples_us]
    found = {}
    if selection is not None:
        found["finalists"] = plots.finalists(selection, floor_us=one.floor_us)
    if timed and has_order:
        default_us = None if one.default is None else one.default.median
        found["convergence"] = plots.convergence(
            measured, default_us=default_us, floor_us=one.floor_us
        )
    if measured:
        found["outcomes"] = plots.outcomes(measured)
    if one.importances:
        found["importance"] = plots.importance(one.importances)
    if len(timed) > 1:
        marked = {"default": one.result.default} if one.result.default else {}
        if selection is not None and not selection.is_default:
            marked["tuned"] = selection.config
        found["slices"] = plots.slices(timed, marked=marked)
        found["parallel"] = plots.parallel(timed)
    return {name: _spec(figure) for name, figure in found.items()}


def losses_by_kind(device: DeviceReport) -> dict[str, dict[int, tuple[float, float]]]:
    """What is lost between rows, before and now, by name of the kind and number of tokens."""
    kinds = device.kinds
    found: dict[str, dict[int, tuple[float, float]]] = {}
    for each in device.between:
        kind = kinds.get(each.shape.without_batch)
        if kind is not None:
            found.setdefault(kind, {})[each.shape.num_tokens] = (each.before, each.after)
    return found


def _by_kind(device: DeviceReport, amounts: str) -> dict[str, Counter[str]]:
    """The sums of what shapes of one kind have: ``outcomes`` or ``spent_s``."""
    found: dict[str, Counter[str]] = {}
    for one in device.shapes:
        found.setdefault(one.kind, Counter()).update(getattr(one, amounts))
    return found


def _spec(figure: go.Figure) -> Spec:
    """A figure less its template, which is larger than most figures and is the page's to choose."""
    spec: Spec = figure.to_plotly_json()
    del spec["layout"]["template"]
    return spec
