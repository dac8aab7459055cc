"""The traces of each figure, made from plain records."""

from __future__ import annotations

import itertools
import math
from dataclasses import replace
from typing import Any

import pytest

from autotune.measure import Outcome
from autotune.report import plots
from autotune.report.plots.figures import escaped, log_ticks
from tests.report.examples import HOSTILE, measured, selection, shape

SHAPE = shape()
FOUND = measured(SHAPE, 40)
CHOSEN = selection(FOUND)


def traces(figure: Any) -> dict[str, dict[str, Any]]:
    """The traces as plain values, by name."""
    return {trace.get("name"): trace for trace in figure.to_plotly_json()["data"]}


# ------------------------------------------------------------------ one shape's trials


def test_finalists_are_shown_from_the_fastest_to_the_slowest():
    shown = plots.finalists(CHOSEN).to_plotly_json()["data"]
    latencies = [trace["x"][0] for trace in shown]
    assert latencies == sorted(latencies)
    assert len(shown) == len(CHOSEN.samples_us) == 6
    assert next(trace["y"][0] for trace in shown) == "tuned"
    assert "default" in [trace["y"][0] for trace in shown]


def test_a_finalist_s_whiskers_reach_its_interval():
    shown = plots.finalists(CHOSEN).to_plotly_json()["data"][0]
    samples = sorted(CHOSEN.samples_us[CHOSEN.config])  # fifteen: the interval is the 4th to 12th
    assert shown["x"][0] + shown["error_x"]["array"][0] == pytest.approx(samples[11], rel=1e-3)
    assert shown["x"][0] - shown["error_x"]["arrayminus"][0] == pytest.approx(samples[3], rel=1e-3)


def test_a_default_that_was_kept_is_called_so():
    default = CHOSEN.default
    kept = replace(CHOSEN, config=default)
    rows = [trace["y"][0] for trace in plots.finalists(kept).to_plotly_json()["data"]]
    assert "default, kept" in rows
    assert "tuned" not in rows


def test_the_roofline_is_drawn_where_it_is_known():
    without, with_it = plots.finalists(CHOSEN), plots.finalists(CHOSEN, floor_us=1.5)
    assert len(without.layout.shapes) == 0
    assert with_it.layout.shapes[0].x0 == 1.5


def test_convergence_steps_down_to_the_best_and_ends_at_the_last_trial():
    shown = traces(plots.convergence(FOUND, default_us=30.0))
    best = shown["best so far"]
    ok_us = [one.latency_us for one in FOUND if one.outcome is Outcome.OK]
    assert list(best["y"]) == sorted(best["y"], reverse=True)
    assert best["y"][-1] == pytest.approx(min(ok_us), rel=1e-3)
    assert best["x"][-1] == len(FOUND)
    assert list(shown["vLLM's default"]["y"]) == [30.0, 30.0]
    drawn = len(shown["timed in full"]["x"]) + len(shown["cut short"]["x"])
    assert drawn == sum(bool(one.samples_us) for one in FOUND) < len(FOUND)


def test_outcomes_are_counted():
    (bars,) = plots.outcomes(FOUND).to_plotly_json()["data"]
    counts = dict(zip(bars["y"], bars["x"], strict=True))
    assert counts["launch failed"] == 4
    assert sum(counts.values()) == len(FOUND)


def test_importances_are_shown_from_the_largest():
    (bars,) = plots.importance({"a": 0.2, "b": 0.7, "c": 0.1}).to_plotly_json()["data"]
    assert list(bars["y"]) == ["b", "a", "c"]
    assert list(bars["text"]) == ["70%", "20%", "10%"]


# ------------------------------------------------------------------ one shape's space


def test_there_is_a_slice_for_every_parameter_that_varies():
    figure = plots.slices(FOUND, marked={"default": CHOSEN.default, "tuned": CHOSEN.config})
    titles = [axis.title.text for axis in figure.select_xaxes()]
    assert titles == ["block_m", "block_n", "block_k", "num_warps", "num_stages"]
    domains = [axis.domain for axis in figure.select_xaxes()]
    assert all(left[1] < right[0] for left, right in itertools.pairwise(domains))
    shown = figure.to_plotly_json()["data"]
    named = [trace["name"] for trace in shown if trace.get("showlegend")]
    assert named == ["default", "tuned"]


def test_a_slice_s_line_joins_the_best_of_each_value():
    figure = plots.slices(FOUND)
    line = next(t for t in figure.to_plotly_json()["data"] if t["mode"] == "lines")
    for value, us in zip(line["x"], line["y"], strict=True):
        those = [m for m in FOUND if m.samples_us and str(m.config.block_m) == value]
        assert us == pytest.approx(min(m.latency_us for m in those), rel=1e-3)


def test_parallel_coordinates_space_values_evenly_and_end_at_the_latency():
    (shown,) = plots.parallel(FOUND).to_plotly_json()["data"]
    *parameters, latency = shown["dimensions"]
    block_k = next(each for each in parameters if each["label"] == "block_k")
    assert list(block_k["ticktext"]) == ["32", "64", "128", "256"]
    assert list(block_k["tickvals"]) == [0, 1, 2, 3]
    timed = [one for one in FOUND if one.samples_us]
    assert len(latency["values"]) == len(block_k["values"]) == len(timed)
    assert min(latency["values"]) == pytest.approx(
        math.log10(min(one.latency_us for one in timed)), rel=1e-3
    )


def test_an_interaction_s_cells_are_relative_to_the_best_of_all():
    (heat,) = plots.interaction(FOUND, "block_k", "num_warps").to_plotly_json()["data"]
    cells = [cell for row in heat["z"] for cell in row if cell is not None]
    assert min(cells) == 1
    assert (len(heat["z"]), len(heat["z"][0])) == (3, 4)


@pytest.mark.parametrize("plot", [plots.convergence, plots.slices, plots.parallel, plots.outcomes])
def test_a_figure_of_nothing_is_empty_and_no_error(plot):
    assert plot([]).to_plotly_json()["data"] is not None


# ------------------------------------------------------------------ many shapes


def test_missing_cells_of_the_map_of_speed_ups_stay_empty():
    figure = plots.speedup_map({("qkv", 1): 2.0, ("o", 16): None, ("qkv", 16): 0.5})
    (heat,) = figure.to_plotly_json()["data"]
    assert (list(heat["y"]), list(heat["x"])) == (["qkv", "o"], ["1", "16"])
    assert [list(row) for row in heat["text"]] == [["2.00", "0.50"], ["", "no default"]]
    assert [list(row) for row in heat["z"]] == [[1.0, -1.0], [None, None]]


def test_the_map_of_importances_has_a_row_for_each_shape():
    figure = plots.importance_map({("qkv", 1): {"a": 0.9, "b": 0.1}, ("qkv", 16): {"b": 1.0}})
    (heat,) = figure.to_plotly_json()["data"]
    assert list(heat["y"]) == ["qkv, 1 token", "qkv, 16 tokens"]
    assert [list(row) for row in heat["z"]] == [[0.9, 0.1], [None, 1.0]]


def test_bars_are_stacked_by_outcome():
    shown = traces(plots.outcome_bars({"qkv": {"ok": 5, "too_slow": 2}, "o": {"ok": 1}}))
    assert list(shown["ok"]["x"]) == [5, 1]
    assert list(shown["cut short"]["x"]) == [2, 0]
    assert set(traces(plots.time_bars({"qkv": {"ok": 1.25}}))) == {"ok"}


def test_losses_between_rows_are_percent_and_infinite_losses_are_not_drawn():
    shown = traces(plots.losses_between({"qkv": {2: (0.3, 0.04), 32: (math.inf, 0.0)}}))
    before, now = shown["before rows were added"], shown["now"]
    assert (list(before["x"]), list(before["y"])) == ([2], [30.0])
    assert (list(now["x"]), list(now["y"])) == ([2, 32], [4.0, 0.0])


@pytest.mark.parametrize(
    "figure",
    [
        plots.speedup_map({(HOSTILE, 1): 2.0}),
        plots.outcome_bars({HOSTILE: {"ok": 1}}),
        plots.losses_between({HOSTILE: {1: (0.1, 0.1)}}),
    ],
)
def test_names_are_shown_as_they_are_and_not_read_as_tags(figure):
    text = str(figure.to_plotly_json()["data"])
    assert escaped(HOSTILE) in text.replace("\\'", "'")
    assert "<b>more" not in text


# ------------------------------------------------------------------ axes


def test_ticks_are_round_numbers_in_range():
    assert log_ticks(4.0, 60.0) == [5, 10, 20, 50]
    assert log_ticks(0.3, 1.1) == [0.5, 1.0]
