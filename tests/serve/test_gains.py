"""When a folder counts as faster or slower in a server."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from autotune.serve.gains import Engine, Figures, Predicted, Round, Row, percentile, rows_of
from autotune.serve.job import Case, Load

CASE = Case(input=64, output=144, requests=8)
LOAD = Load(requests=(8,), inputs=(64,), outputs=(144,), repeats=1)
STEPS = st.floats(0.5, 100.0)


def figures(*steps_ms: float) -> Figures:
    """Of rounds with these times of a step."""
    return Figures.of(
        [
            Round(step_s=each / 1e3, tokens_per_s=8e3 / each, ttft_s=[0.1], itl_s=[each / 1e3])
            for each in steps_ms
        ]
    )


def row(default: float, again: float, folder: float, **more: float) -> Row:
    once_more = more.get("folder_again")
    return Row(
        case=CASE,
        default=figures(default),
        again=figures(again),
        folder=figures(folder),
        folder_again=None if once_more is None else figures(once_more),
    )


@given(STEPS, STEPS)
def test_a_folder_between_the_two_defaults_is_the_same(default, again):
    assert row(default, again, (default + again) / 2).verdict == "same"


@given(STEPS, STEPS, STEPS)
def test_a_folder_is_only_slower_or_faster_beyond_the_drift_of_the_defaults(default, again, folder):
    one = row(default, again, folder)
    drift = abs(default - again)
    if one.verdict == "slower":
        assert folder > max(default, again) + drift
    if one.verdict == "faster":
        assert folder < min(default, again) - drift
    assert row(again, default, folder).verdict == one.verdict


@given(STEPS)
def test_a_difference_below_one_percent_is_noise(step):
    assert row(step, step, step * 1.009).verdict == "same"
    assert row(step, step, step * 1.03).verdict == "slower"


def test_rounds_that_are_far_apart_are_noise_too():
    steady = row(10.0, 10.0, 11.0)
    assert steady.verdict == "slower"
    assert replace(steady, folder=figures(10.0, 11.0, 13.0)).verdict == "same"


def test_a_second_server_with_the_folder_counts_as_much_as_the_first():
    assert row(10.0, 10.0, 12.0, folder_again=12.0).verdict == "slower"
    assert row(10.0, 10.0, 12.0, folder_again=10.0).verdict == "same"
    assert row(10.0, 10.0, 8.0, folder_again=8.1).verdict == "faster"
    assert row(10.0, 10.0, 8.0, folder_again=9.0).folder_ms == pytest.approx(8.5)


@pytest.mark.parametrize(
    ("predicted", "expected"), [(2.0, True), (2.15, True), (2.3, False), (1.0, False), (None, None)]
)
def test_a_saving_is_as_predicted_within_a_tenth(predicted, expected):
    told = None if predicted is None else Predicted(kernels_ms=4.0, saved_ms=predicted)
    one = replace(row(10.0, 10.0, 8.0), predicted=told)
    assert one.is_as_predicted is expected
    assert one.as_dict()["is_as_predicted"] is expected


@pytest.mark.parametrize(
    ("no_lora", "kernels", "expected"), [(6.0, 4.1, False), (6.0, 6.0, True), (6.0, None, False)]
)
def test_a_gpu_that_has_time_left_is_told_by_what_lora_adds(no_lora, kernels, expected):
    told = Predicted(kernels_ms=kernels, saved_ms=2.0)
    one = replace(row(10.0, 10.0, 8.0), predicted=told, no_lora=figures(no_lora))
    assert one.waits_for_processor is expected
    assert not replace(one, no_lora=None).waits_for_processor
    assert not replace(one, predicted=None).waits_for_processor


def test_percentiles_are_values_that_were_seen():
    assert percentile([5.0], 99) == 5.0
    assert percentile(list(range(1, 101)), 99) == 99
    assert percentile([3.0, 1.0, 2.0], 50) == 2.0


def test_the_gain_is_given_over_both_defaults():
    assert list(row(12.0, 11.0, 10.0).gains) == pytest.approx([0.1, 0.2])


def test_a_row_needs_no_server_without_lora():
    rounds = {CASE: [Round(step_s=0.01, tokens_per_s=800, ttft_s=[0.1], itl_s=[0.01])]}
    names = ("default", "folder", "default again")
    engines = {name: Engine(name=name, rounds=dict(rounds)) for name in names}
    told = Predicted(kernels_ms=2.0, saved_ms=1.0)
    (one,) = rows_of(engines, LOAD, {8: told})
    assert (one.no_lora, one.folder_again, one.predicted) == (None, None, told)
