"""Where vLLM reads only block_m of a MoE entry."""

import pytest

from autotune.launch.op import LoraOp
from autotune.launch.release import has_one_shot_kernel, parameters_read, reads_only_block_m
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
def test_it_is_so_up_to_rank_128_from_0_22_on_unless_loras_are_fully_sharded(
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
def test_of_a_batch_that_is_not_sorted_not_even_block_m_is_read(changes, read):
    assert parameters_read(moe_shape(LoraOp.W2_EXPAND, **changes), "0.33.0") == read


def test_of_a_dense_op_everything_is_read():
    assert not reads_only_block_m(qkv_shrink(), "0.33.0")


@pytest.mark.parametrize(
    ("release", "has"),
    [
        ("0.21.9", False),
        ("0.22.0rc1", True),
        ("1.0.0", True),
        ("0.33.1.dev7+g1", True),
        ("?", True),
    ],
)
def test_a_release_is_compared_by_its_numbers_and_one_without_them_counts_as_new(release, has):
    assert has_one_shot_kernel(release) is has
