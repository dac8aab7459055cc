"""Which launches share a compiled kernel; ``tests/vllm`` compares it with Triton's own keys."""

from __future__ import annotations

from dataclasses import replace

import pytest

from autotune.launch.binary import binary_of, specialised
from autotune.launch.environment import Target
from autotune.launch.op import LoraOp
from tests.measure.kernels.cases import A100, expand_shape, make_config, moe_shape, shrink_shape


@pytest.mark.parametrize(
    ("number", "expected"),
    [
        (0, "i32 of 16"),
        (1, "1"),
        (2, "i32"),
        (16, "i32 of 16"),
        (2**31 - 1, "i32"),
        (2**31, "i64 of 16"),
        (2**31 + 1, "i64"),
    ],
)
def test_an_integer_is_compiled_in_as_one_as_a_multiple_of_16_or_not(number, expected):
    assert specialised(number) == expected


@pytest.mark.parametrize("shape", [shrink_shape(rank=16), expand_shape(rank=16)])
def test_a_configuration_is_three_kernels_over_the_batch_sizes(shape):
    config = make_config(shape.op)
    by_size = {m: binary_of(replace(shape, num_tokens=m), config) for m in range(1, 200)}
    assert len(set(by_size.values())) == 3
    assert len({by_size[m] for m in by_size if m % 16 == 0}) == 1


def test_layers_of_other_sizes_share_a_kernel_where_their_sizes_are_alike():
    small, large, odd = (shrink_shape(hidden_size=n, rank=16) for n in (4096, 14336, 4097))
    config = make_config(LoraOp.SHRINK)
    assert binary_of(small, config) == binary_of(large, config) != binary_of(odd, config)


def test_num_stages_of_expand_make_no_difference_where_vllm_sets_them():
    shape, stages = expand_shape(), [make_config(LoraOp.EXPAND, num_stages=n) for n in (2, 3)]

    def count(release: str, target: Target | None = None) -> int:
        return len({binary_of(shape, each, release=release, target=target) for each in stages})

    assert (count("0.33.0"), count("0.28.0"), count("0.33.0", A100)) == (1, 2, 2)


def test_what_a_release_does_not_read_makes_no_difference():
    shape = moe_shape(LoraOp.W13_SHRINK)
    several = [make_config(shape.op, block_n=n) for n in (16, 32)]
    releases = ("0.15.1", "0.33.0")
    assert [len({binary_of(shape, c, release=r) for c in several}) for r in releases] == [2, 1]
