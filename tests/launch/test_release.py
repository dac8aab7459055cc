"""What a release of vLLM reads of a tuned entry."""

import pytest

from autotune.launch.op import LoraOp
from autotune.launch.release import (
    has_pipeline,
    one_shot_rank,
    parameters_read,
    reads_only_block_m,
)
from tests.export.examples import qkv_shrink
from tests.moe import moe_shape


@pytest.mark.parametrize(
    ("changes", "release", "bypassed"),
    [
        ({"rank": 16}, "0.33.0", True),
        ({"rank": 128}, "0.22.1", True),
        ({"rank": 256}, "0.33.0", False),
        ({"rank": 16, "fully_sharded": True}, "0.33.0", False),
        ({"rank": 16}, "0.15.1", False),
    ],
)
def test_a_moe_op_reads_only_block_m_up_to_rank_128_from_0_22_on_unless_fully_sharded(
    changes, release, bypassed
):
    assert reads_only_block_m(moe_shape(LoraOp.W2_EXPAND, **changes), release) is bypassed


@pytest.mark.parametrize(
    ("changes", "read"),
    [
        ({"num_tokens": 64, "rank": 64}, ("block_m",)),
        ({"num_tokens": 16, "rank": 64}, ()),  # 128 pairs * 8 <= 128 experts * 8 adapters
        ({"num_tokens": 16, "rank": 256}, LoraOp.W2_EXPAND.parameters),
    ],
)
def test_a_moe_op_reads_not_even_block_m_where_the_tokens_are_not_sorted(changes, read):
    assert parameters_read(moe_shape(LoraOp.W2_EXPAND, **changes), "0.33.0") == read


def test_a_dense_op_reads_its_whole_entry():
    assert parameters_read(qkv_shrink(), "0.33.0") == LoraOp.SHRINK.parameters


@pytest.mark.parametrize(
    ("release", "rank"),
    [
        ("0.21.9", 0),
        ("0.22.0rc1", 128),
        ("1.0.0", 128),
        ("0.33.1.dev7+g1", 128),
        ("?", 128),
    ],
)
def test_a_release_is_compared_by_its_numbers_and_one_without_them_counts_as_new(release, rank):
    assert one_shot_rank(release) == rank


@pytest.mark.parametrize("capability", [(8, 0), (9, 0), (10, 0)])
def test_only_an_expand_on_hopper_has_no_pipeline(capability):
    without = [op for op in LoraOp if not has_pipeline(op, capability)]
    assert without == ([LoraOp.EXPAND] if capability == (9, 0) else [])
