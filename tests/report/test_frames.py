"""DataFrames of results: one row for each trial or selection, the same columns for all ops."""

from __future__ import annotations

import sys
from dataclasses import replace
from datetime import datetime, timedelta

import pandas as pd
import pytest

from autotune.errors import InputError
from autotune.launch.op import LoraOp
from autotune.measure.replay import ReplayRunner
from autotune.report.frames import (
    SELECTION_COLUMNS,
    TRIAL_COLUMNS,
    selections_frame,
    summaries_frame,
    trials_frame,
)
from autotune.search.contest.curves import Summary
from autotune.store.results import ShapeResult, of_replay
from tests.moe import moe_lines, moe_shape
from tests.recordings import BEST, EXPAND, SHRINK, lines
from tests.search.cases import broken_lines, write_lines


def recorded(tmp_path, *measurements) -> list[ShapeResult]:
    return of_replay(ReplayRunner([write_lines(tmp_path / "r.jsonl.gz", measurements)]))


@pytest.fixture
def results(tmp_path) -> list[ShapeResult]:
    return recorded(tmp_path, *lines(SHRINK), *lines(EXPAND))


def test_a_row_of_trials_has_the_shape_the_configuration_and_the_outcome(results):
    frame = trials_frame(results)
    assert tuple(frame.columns) == TRIAL_COLUMNS
    assert len(frame) == 2 * 162

    first, measurement = frame.iloc[0], results[0].measurements[0]
    assert (first["op"], first["num_tokens"], first["rank"]) == ("shrink", 16, 16)
    assert (first["gpu"], first["kernels"]) == ("NVIDIA Test-GPU", "builtin")
    assert first["study"] == results[0].study
    assert first["latency_us"] == measurement.latency_us
    assert first["samples"] == 15
    assert {name: first[name] for name in measurement.config.as_dict()} == (
        measurement.config.as_dict()
    )
    assert frame.groupby("study")["is_default"].sum().tolist() == [1, 1]


def test_trials_are_counted_within_their_study(results):
    frame = trials_frame(results)
    assert frame["trial"].tolist() == [*range(162), *range(162)]


def test_a_configuration_that_was_not_timed_has_a_reason_and_no_latency(results):
    frame = trials_frame(results)
    failed = frame[frame["outcome"] == "launch_failed"]
    assert failed["reason"].tolist() == ["OutOfResources: shared memory"] * 2
    assert failed["latency_us"].isna().all()
    assert (failed["samples"] == 0).all()


def test_a_parameter_that_an_op_lacks_is_missing_and_the_others_stay_whole_numbers(results):
    frame = trials_frame(results)
    assert frame.loc[frame["op"] == "expand", "split_k"].isna().all()
    assert (frame.loc[frame["op"] == "shrink", "split_k"] == 8).all()
    assert str(frame["split_k"].dtype) == str(frame["registers"].dtype) == "Int64"


def test_slice_sizes_are_one_text(results):
    frame = trials_frame(results)
    assert set(frame["slice_sizes"]) == {"", "4096+1024+1024"}


def test_times_are_there_where_the_source_knows_them(results):
    assert trials_frame(results)["started_at"].isna().all()
    one, start = results[0], datetime(2026, 11, 25, 12)  # noqa: DTZ001 - the store's are naive
    times = tuple((start, start + timedelta(seconds=n)) for n in range(len(one.measurements)))
    frame = trials_frame([replace(one, times=times)])
    assert (frame["finished_at"] - frame["started_at"]).dt.total_seconds().tolist() == [*range(162)]


def test_is_default_is_missing_while_a_search_is_under_way(results):
    frame = trials_frame([replace(results[0], default=None, selection=None)])
    assert frame["is_default"].isna().all()


def test_a_row_of_selections_has_the_choice_beside_the_default(results):
    frame = selections_frame(results)
    assert tuple(frame.columns) == SELECTION_COLUMNS
    for (_, row), result in zip(frame.iterrows(), results, strict=True):
        assert {name: row[name] for name in BEST} == BEST
        assert result.selection is not None
        assert result.selection.ratio is not None
        assert row["ratio"] == result.selection.ratio.value
        assert row["ratio_low"] <= row["ratio"] <= row["ratio_high"]
        assert row["default_us"] / row["tuned_us"] == pytest.approx(row["ratio"], rel=0.01)
        assert not row["is_default"]


def test_a_default_that_does_not_run_leaves_the_ratio_missing(tmp_path):
    those = [line | {"is_default": "reason" in line} for line in lines(SHRINK)]
    frame = selections_frame(recorded(tmp_path, *those))
    assert frame[["default_us", "ratio", "ratio_low", "ratio_high"]].isna().all().all()
    assert frame["tuned_us"].notna().all()


def test_a_shape_where_nothing_works_has_trials_and_no_selection(tmp_path):
    results = recorded(tmp_path, *broken_lines(SHRINK))
    assert len(trials_frame(results)) == 12
    empty = selections_frame(results)
    assert len(empty) == 0
    assert tuple(empty.columns) == SELECTION_COLUMNS


def test_moe_and_dense_shapes_share_their_columns(tmp_path):
    moe = moe_lines(moe_shape(LoraOp.W2_SHRINK).as_dict())
    frame = trials_frame(recorded(tmp_path, *lines(EXPAND), *moe))
    experts = frame.groupby("op")["num_experts"].first().to_dict()
    assert experts == {"expand": 0, "fused_moe_lora_w2_shrink": 128}


def test_a_row_of_summaries_has_losses_in_percent_and_trials():
    summary = Summary(
        sampler="adaptive",
        transfer=True,
        shipped=False,
        searches=4,
        failed=1,
        regret={20: (0.01, 0.25)},
        trials_to={0.05: (7.0, 9.5)},
        score=0.75,
        sampler_ms=3.0,
        trials=60.0,
        at_end=(0.0, 0.01),
    )
    (row,) = summaries_frame([summary]).to_dict("records")
    assert row == {
        "sampler": "adaptive, transfer",
        "median after 20, %": 1.0,
        "worst after 20, %": 25.0,
        "median trials to 5%": 7.0,
        "mean trials to 5%": 9.5,
        "score": 0.75,
        "ms per trial": 3.0,
        "failed": 1,
    }


def test_frames_can_be_put_together_and_written(results):
    both = pd.concat([trials_frame(results[:1]), trials_frame(results[1:])], ignore_index=True)
    pd.testing.assert_frame_equal(both, trials_frame(results))
    assert both.to_csv().count("\n") == 1 + 2 * 162


def test_without_pandas_one_line_says_how_to_get_it(results, monkeypatch):
    monkeypatch.setitem(sys.modules, "pandas", None)
    with pytest.raises(InputError, match=r"pip install '/path/to/clone\[pandas\]'"):
        trials_frame(results)
