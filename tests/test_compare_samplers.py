from __future__ import annotations

import json
import math

import pytest

from autotune.compare_samplers import Curve, _expected_random, compare, main, summaries
from autotune.measure.replay import ReplayRunner
from autotune.shapes import KernelShape
from tests.recordings import SHRINK, write_recording

SHAPE = KernelShape.from_mapping(SHRINK)


def curve(*regret: float, expected: tuple[float, ...] = (1.0, 0.5, 0.5)) -> Curve:
    return Curve(
        sampler="adaptive",
        shape=SHAPE,
        transfer=False,
        seed=0,
        regret=regret,
        expected_random=expected,
        sampler_s=0.3,
    )


def test_regret_after_more_trials_than_there_are_is_that_at_the_end():
    assert curve(1.0, 0.5, 0.1).after(2) == 0.5
    assert curve(1.0, 0.5, 0.1).after(100) == 0.1


def test_trials_to_a_nearness_are_counted_from_one():
    assert curve(1.0, 0.5, 0.01).trials_to(0.02) == 3
    assert math.isinf(curve(1.0, 0.5, 0.1).trials_to(0.02))


def test_the_score_is_0_for_random_search_and_1_for_the_best_at_once():
    assert curve(1.0, 0.5, 0.5).score == 0
    assert curve(1.0, 0.0, 0.0).score == 1
    assert curve(math.inf, 9.0, 9.0).score == -1
    assert curve(0.0, 0.0, 0.0, expected=(0.0, 0.0, 0.0)).score == 1


def test_what_random_search_is_expected_to_reach():
    # Two of three others: 0.0 is among them in two of three cases, else 0.2 is the lowest.
    expected = _expected_random(3.0, [0.2, 0.0, 0.8], 4)
    assert expected == pytest.approx((1.0, 1 / 3, 0.2 / 3, 0.0))


def test_a_default_that_is_better_than_others_stays():
    assert _expected_random(0.1, [0.5, 0.0], 2) == pytest.approx((0.1, 0.05))


def test_samplers_are_compared_on_every_recorded_shape(tmp_path):
    runner = ReplayRunner([write_recording(tmp_path / "r.jsonl.gz")])
    curves = compare(runner, ["random", "adaptive"], trials=40, seeds=2)
    assert len(curves) == 2 * 2 * 2
    curves += compare(runner, ["adaptive"], trials=40, seeds=2, transfer=True)
    found = summaries(curves)
    assert [(each.sampler, each.transfer) for each in found] == [
        ("random", False),
        ("adaptive", False),
        ("adaptive", True),
    ]
    assert found[1].score > found[0].score
    assert json.loads(json.dumps(found[1].as_dict()))["searches"] == 4


def test_the_script_prints_a_row_for_each_sampler(tmp_path, capsys):
    path = write_recording(tmp_path / "r.jsonl.gz", SHRINK)
    main([str(path), "--samplers", "random", "--trials", "20", "--seeds", "1", "--lookahead", "1"])
    out = capsys.readouterr().out
    assert "random" in out
    assert "adaptive, transfer" in out
