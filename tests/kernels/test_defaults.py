"""vLLM 0.33.0's defaults, as VLLM_CONTRACT.md gives them."""

from __future__ import annotations

import pytest

from autotune.kernels.defaults import default_config
from tests.kernels.cases import expand_shape, shrink_shape


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
