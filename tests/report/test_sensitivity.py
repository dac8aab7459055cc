"""How much each parameter gains, on spaces whose latencies are known."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest

from autotune.launch.config import KernelConfig
from autotune.measure.replay import ReplayRunner
from autotune.report.axes import varied
from autotune.report.frames import sensitivities_frame
from autotune.report.plots import (
    factor_map,
    gain_map,
    importance_map,
    importance_shares,
    loss_map,
    pair_map,
    steps_to_best,
)
from autotune.report.sensitivity import Sensitivity, around, base_of, sensitivities
from autotune.store.results import ShapeResult, of_replay
from tests.recordings import BEST, EXPAND, SHRINK, lines
from tests.search.cases import broken_lines, write_lines

AXES = {
    "block_m": [16, 32, 64],
    "block_n": [16, 32, 64],
    "block_k": [32, 64, 128],
    "num_warps": [2, 4, 8],
    "num_stages": [2, 3],
}


def results_of(tmp_path, *those) -> list[ShapeResult]:
    return of_replay(ReplayRunner([write_lines(tmp_path / "r.jsonl.gz", those)]))


@pytest.fixture
def result(tmp_path) -> ShapeResult:
    (one,) = results_of(tmp_path, *lines(SHRINK))
    return one


@pytest.fixture
def found(result) -> Sensitivity:
    one = Sensitivity.of(result)
    assert one is not None
    return one


def latency_us(result: ShapeResult, **values: int) -> float:
    """The latency of the default with these values changed."""
    assert result.default is not None
    config = replace(result.default, **values)
    (measurement,) = [one for one in result.measurements if one.config == config]
    return measurement.latency_us


def test_a_parameter_alone_gains_by_its_best_value_with_the_rest_as_the_default(result, found):
    assert found.base == result.default
    for name, us in found.alone_us.items():
        assert us == min(latency_us(result, **{name: value}) for value in AXES[name])
    assert found.gains["block_n"] == found.base_us / latency_us(result, block_n=BEST["block_n"])


def test_a_pair_gains_by_its_best_values_together(result, found):
    assert len(found.pairs_us) == math.comb(len(AXES), 2)
    best = latency_us(result, block_m=BEST["block_m"], block_n=BEST["block_n"])
    assert found.pairs_us["block_m", "block_n"] == best
    assert found.pair_gains["block_m", "block_n"] == found.base_us / best
    assert all(us <= min(found.alone_us[n] for n in pair) for pair, us in found.pairs_us.items())
    assert all(times >= 1 for times in found.synergies.values())


def test_a_parameter_that_is_not_changed_costs_what_the_others_cannot_make_up(result, found):
    others = {name: value for name, value in BEST.items() if name != "block_n"}
    assert found.kept_us["block_n"] == latency_us(result, **others)
    assert found.losses["block_n"] == found.kept_us["block_n"] / found.best_us
    assert found.best_us == latency_us(result, **BEST)


def test_only_parameters_with_several_values_are_looked_at(found):
    assert [*found.alone_us] == [*found.kept_us] == [*AXES]
    assert sum(found.importance.values()) == pytest.approx(1)


def test_the_nearest_configuration_stands_for_a_default_outside_of_the_space(tmp_path):
    # Blocks of 256 rows were recorded for the default alone, as with batches smaller than that.
    those = [line | {"is_default": False} for line in lines(SHRINK)]
    outside = {**BEST, "block_m": 256, "num_warps": 8, "split_k": 8}
    default = {"shape": SHRINK, "config": outside, "outcome": "ok", "samples_us": [50.0] * 15}
    (result,) = results_of(tmp_path, *those, default | {"is_default": True})
    found = Sensitivity.of(result)
    assert found is not None
    assert found.default_us == 50
    assert found.base.as_dict() == result.default.as_dict() | {"block_m": 64}  # type: ignore[union-attr]
    assert found.base_us == latency_us(result, block_m=64)


def test_of_equally_near_configurations_the_one_with_the_defaults_blocks_stands_for_it():
    blocks = {"block_m": 32, "block_n": 16, "block_k": 256}
    default = KernelConfig(**blocks, split_k=64, num_warps=4, num_stages=2)
    shallow, small = replace(default, split_k=16), replace(default, block_k=64)
    other = replace(default, block_k=128, split_k=32, num_warps=8)
    known = {other: 1.0, small: 2.0, shallow: 3.0, default: 4.0}
    assert base_of(default, known) == shallow


def test_the_nearest_configuration_stands_for_a_default_that_does_not_run(tmp_path):
    those = [line | {"is_default": "reason" in line} for line in lines(SHRINK)]
    (result,) = results_of(tmp_path, *those)
    found = Sensitivity.of(result)
    assert found is not None
    assert found.default_us is None
    assert found.base != result.default
    figure = steps_to_best([found])
    assert figure.layout.height > 0
    assert [len(trace.x) for trace in figure.data] == [0, 0, 0, 0]


def test_shapes_where_nothing_works_or_the_default_is_unknown_are_left_out(tmp_path, result):
    (broken,) = results_of(tmp_path, *broken_lines(SHRINK))
    assert sensitivities([broken, replace(result, default=None)]) == []


def test_configurations_that_differ_in_two_parameters_only_are_found(result, found):
    those = around(found.base, result.measurements, ["block_m", "block_n"])
    assert len(those) == 9
    assert set(varied(one.config for one in those)) == {"block_m", "block_n"}


def test_shapes_are_in_the_order_of_op_rank_sizes_and_tokens(tmp_path):
    tokens = [{**SHRINK, "num_tokens": count} for count in (128, 16)]
    those = [line for shape in (*tokens, EXPAND) for line in lines(shape)]
    found = sensitivities(results_of(tmp_path, *those))
    assert [(one.shape.op.value, one.shape.num_tokens) for one in found] == [
        ("expand", 64),
        ("shrink", 16),
        ("shrink", 128),
    ]


def test_the_frame_has_the_gains_of_one_and_two_parameters(found):
    (row,) = sensitivities_frame([found]).to_dict("records")
    assert row["default_us"] == row["base_us"] == found.base_us
    assert row["base_us"] > row["one_us"] > row["two_us"] >= row["best_us"]
    assert row["one_us"] == found.alone_us[row["one"]]
    assert row["two_us"] == found.pairs_us[tuple(row["two"].split(" + "))]


def test_the_frame_names_nothing_where_nothing_gains(found):
    best = replace(found, default_us=1.0, base_us=1.0, best_us=1.0)
    best = replace(best, alone_us={"block_m": 1.0, "block_n": 1.0}, pairs_us={})
    (row,) = sensitivities_frame([best]).to_dict("records")
    assert (row["one"], row["two"], row["one_us"], row["two_us"]) == ("", "", 1, 1)


# ------------------------------------------------------------------ figures


def cells(figure) -> dict[tuple[str, str], str]:
    (heat,) = figure.data
    return {
        (row, column): heat.text[n][m]
        for n, row in enumerate(heat.y)
        for m, column in enumerate(heat.x)
    }


def test_maps_show_the_factors_of_each_shape_and_parameter(found):
    gains, losses = cells(gain_map([found])), cells(loss_map([found]))
    assert gains["4096&gt;16 x3, 16 tokens", "block_n"] == f"{found.gains['block_n']:.2f}"
    assert losses["4096&gt;16 x3, 16 tokens", "block_n"] == f"{found.losses['block_n']:.2f}"


def test_names_say_whose_kernels_were_timed_where_there_are_several(found):
    other = replace(found, kernels="vllm-0.33.0")
    (heat,) = gain_map([found, other]).data
    assert list(heat.y) == [
        "4096&gt;16 x3, 16 tokens, builtin",
        "4096&gt;16 x3, 16 tokens, vllm-0.33.0",
    ]
    assert len(importance_map(importance_shares([found, other])).data[0].y) == 2


def test_the_map_of_pairs_has_each_parameter_alone_on_its_diagonal(found):
    shown = cells(pair_map([found, found]))
    assert shown["block_m", "block_m"] == f"{found.gains['block_m']:.2f}"
    assert shown["block_m", "block_n"] == shown["block_n", "block_m"]
    assert shown["block_m", "block_n"] == f"{found.pair_gains['block_m', 'block_n']:.2f}"


def test_a_shape_with_one_value_of_a_parameter_gains_nothing_by_it(found):
    narrow = replace(found, alone_us={"block_n": found.base_us / 4}, pairs_us={})
    wide = replace(
        found,
        alone_us={"block_m": found.base_us, "block_n": found.base_us / 4},
        pairs_us={("block_m", "block_n"): found.base_us / 4},
    )
    shown = cells(pair_map([narrow, wide]))
    assert shown["block_m", "block_m"] == "1.00"
    assert shown["block_m", "block_n"] == shown["block_n", "block_n"] == "4.00"


def test_steps_are_drawn_from_the_default_to_the_best(found):
    figure = steps_to_best([found])
    shown = {trace.name: trace.x[0] for trace in figure.data}
    assert shown["nearest in the space"] == 1
    assert shown["one parameter changed"] == pytest.approx(max(found.gains.values()), rel=1e-3)
    assert shown["best of all"] == pytest.approx(found.base_us / found.best_us, rel=1e-3)


def test_missing_cells_of_a_map_stay_empty():
    shown = cells(factor_map({"a": {1: 1.5}, "b": {}}, "tokens", columns=[1, 2]))
    assert shown == {("a", "1"): "1.50", ("a", "2"): "", ("b", "1"): "", ("b", "2"): ""}
