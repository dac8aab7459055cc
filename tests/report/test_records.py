"""What a report knows of its shapes and devices."""

from __future__ import annotations

import pytest

from autotune.measure.measurement import Ceilings
from tests.report.examples import HOSTILE, device_of, measured, selection, shape, shape_of


def test_every_shape_says_how_it_came_out(odd_device):
    verdicts = [
        (one.shape.op.value, one.shape.num_tokens, one.verdict) for one in odd_device.shapes
    ]
    assert verdicts == [
        ("shrink", 1, "faster"),
        ("shrink", 16, "faster"),
        ("shrink", 256, "faster"),
        ("expand", 16, "not finished"),
        ("expand", 64, "nothing works"),
        ("shrink", 16, "not finished"),
    ]


def test_latencies_of_the_default_and_of_the_choice_are_those_of_the_finalists(odd_device):
    one = shape_of(odd_device, f"shrink {HOSTILE}", 16)
    chosen, default, tuned = one.selection, one.default, one.tuned
    assert chosen is not None
    assert chosen.ratio is not None
    assert default is not None
    assert tuned is not None
    assert default.median == pytest.approx(chosen.default_latency_us)
    assert tuned.median == pytest.approx(chosen.latency_us)
    assert default.median / tuned.median == pytest.approx(chosen.ratio.value, rel=0.01)


def test_the_roofline_is_that_of_the_ceilings(odd_device):
    one = shape_of(odd_device, f"shrink {HOSTILE}", 16)
    assert odd_device.ceilings == Ceilings(1e12, 1e15)
    assert one.floor_us == pytest.approx(one.bytes_moved / 1e12 * 1e6)


def test_a_row_that_was_added_has_the_layers_of_its_neighbours(odd_device):
    # Only the study of 16 tokens was given the name.
    assert shape_of(odd_device, "expand o, down", 64).result.study == "nothing works"


def test_time_is_the_sum_over_measurements_by_outcome(odd_device):
    one = shape_of(odd_device, "expand o, down", 64)
    assert one.spent_s == {"launch_failed": pytest.approx(4.0)}


def test_a_choice_with_newer_trials_is_stale(tmp_path):
    (one,) = device_of(tmp_path, selection(measured(shape(), 20))).shapes
    assert one.is_stale
