"""How long tuning is said to take."""

from __future__ import annotations

import pytest

from autotune.launch.op import LoraOp
from autotune.plan.effort import EFFORTS, tuning_s
from autotune.plan.study import StudyPlan
from tests.moe import moe_shape


def test_twice_the_studies_take_twice_as_long_and_more_trials_take_longer():
    shapes = StudyPlan.quickstart().shapes

    start_s = tuning_s([], 200)
    assert start_s > 0
    assert tuning_s(shapes * 2, 200) - start_s == pytest.approx(
        2 * (tuning_s(shapes, 200) - start_s)
    )
    assert tuning_s(shapes, 400) > tuning_s(shapes, 200)
    assert tuning_s(shapes, 200, between=100) > tuning_s(shapes, 200)


def test_an_effort_leaves_shapes_before_all_trials_are_made():
    shapes = StudyPlan.quickstart().shapes

    times = [tuning_s(shapes, 1000, effort=effort) for effort in EFFORTS]
    assert times == sorted(times)
    assert times[-1] < tuning_s(shapes, 1000)
    assert tuning_s(shapes, 2, effort="normal") == tuning_s(shapes, 2)


def test_a_shape_of_which_vllm_reads_only_block_m_is_tuned_sooner():
    at_rank_16, at_rank_256 = (moe_shape(LoraOp.W13_SHRINK, rank=rank) for rank in (16, 256))

    start_s = tuning_s([], 200)
    assert tuning_s([at_rank_16], 200) - start_s < (tuning_s([at_rank_256], 200) - start_s) / 4
    assert tuning_s([at_rank_16], 2) == tuning_s([at_rank_256], 2)
