"""How long tuning is said to take."""

from __future__ import annotations

import pytest

from autotune.launch.op import LoraOp
from autotune.plan.effort import tuning_s
from autotune.plan.study import StudyPlan
from tests.moe import moe_shape


def test_twice_the_studies_take_twice_as_long_and_more_trials_take_longer():
    shapes = StudyPlan.quickstart().shapes

    assert tuning_s(shapes * 2, 200) == pytest.approx(2 * tuning_s(shapes, 200))
    assert tuning_s(shapes, 400) > tuning_s(shapes, 200)
    assert tuning_s(shapes, 200, between=100) > tuning_s(shapes, 200)


def test_a_shape_of_which_vllm_reads_only_block_m_is_tuned_sooner():
    at_rank_16, at_rank_256 = (moe_shape(LoraOp.W13_SHRINK, rank=rank) for rank in (16, 256))

    assert tuning_s([at_rank_16], 200) < tuning_s([at_rank_256], 200) / 4
    assert tuning_s([at_rank_16], 2) == tuning_s([at_rank_256], 2)
