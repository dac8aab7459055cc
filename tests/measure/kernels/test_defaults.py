"""The default configurations of vLLM 0.33.0."""

from __future__ import annotations

import pytest

from autotune.launch.op import LoraOp
from autotune.measure.kernels.defaults import default_config
from tests.measure.kernels.cases import expand_shape, moe_shape, shrink_shape


@pytest.mark.parametrize(
    ("num_tokens", "block_k", "split_k"), [(1, 256, 64), (127, 256, 64), (128, 32, 8)]
)
def test_shrink_splits_k_deeper_for_fewer_than_128_tokens(num_tokens, block_k, split_k):
    assert default_config(shrink_shape(num_tokens=num_tokens)).as_dict() == {
        "block_m": 32,
        "block_n": 16,
        "block_k": block_k,
        "split_k": split_k,
        "group_size_m": 8,
        "num_warps": 4,
        "num_stages": 2,
        "num_ctas": 1,
    }


@pytest.mark.parametrize(("slice_sizes", "block_n"), [([40], 128), ([40, 40], 64), ([9] * 3, 64)])
def test_expand_takes_narrower_tiles_for_several_slices(slice_sizes, block_n):
    assert default_config(expand_shape(slice_sizes=slice_sizes)).as_dict() == {
        "block_m": 64,
        "block_n": block_n,
        "block_k": 32,
        "num_warps": 4,
        "num_stages": 2,
        "num_ctas": 1,
    }


@pytest.mark.parametrize("op", [LoraOp.W13_SHRINK, LoraOp.W2_SHRINK])
@pytest.mark.parametrize(("rank", "block_n"), [(8, 8), (16, 16), (64, 64), (256, 64)])
def test_moe_shrinks_take_no_more_columns_than_the_rank(op, rank, block_n):
    assert default_config(moe_shape(op, rank=rank)).as_dict() == {
        "block_m": 64,
        "block_n": block_n,
        "block_k": 32,
        "split_k": 1,
        "group_size_m": 8,
        "num_warps": 4,
        "num_stages": 3,
    }


@pytest.mark.parametrize("op", [LoraOp.W13_EXPAND, LoraOp.W2_EXPAND])
@pytest.mark.parametrize(("rank", "block_k"), [(8, 16), (16, 16), (32, 32), (256, 32)])
def test_moe_expands_take_no_more_depth_than_the_rank(op, rank, block_k):
    assert default_config(moe_shape(op, rank=rank)).as_dict() == {
        "block_m": 64,
        "block_n": 64,
        "block_k": block_k,
        "split_k": 1,
        "group_size_m": 8,
        "num_warps": 4,
        "num_stages": 3,
    }
