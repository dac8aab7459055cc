"""The tensors of a launch and their tables."""

from __future__ import annotations

import pytest
import torch

from autotune.errors import InputError
from autotune.measure.kernels.inputs import (
    make_inputs,
    weight_bytes_touched,
    weight_set_bytes,
)
from tests.measure.kernels.cases import expand_shape, shrink_shape


def test_the_seed_decides_every_value():
    first, again, other = (
        make_inputs(shrink_shape(), device="cpu", weight_sets=1, seed=seed) for seed in (1, 1, 2)
    )

    assert torch.equal(first.x, again.x)
    assert torch.equal(first.weight_sets[0][0], again.weight_sets[0][0])
    assert not torch.equal(first.x, other.x)


def test_shrink_tensors_have_the_sizes_that_vllm_allocates():
    shape = shrink_shape(num_tokens=5, hidden_size=70, rank=16, num_slices=3, max_loras=2)

    inputs = make_inputs(shape, device="cpu", weight_sets=2, seed=0)

    assert inputs.x.shape == (5, 70)
    assert inputs.x.dtype is torch.float16
    assert inputs.out.shape == (3, 5, 16)
    assert inputs.out.dtype is torch.float32
    assert [[each.shape for each in weights] for weights in inputs.weight_sets] == [
        [(2, 16, 70)] * 3
    ] * 2


def test_expand_tensors_have_the_sizes_that_vllm_allocates():
    shape = expand_shape(num_tokens=5, slice_sizes=[40, 10], rank=16, max_loras=2)

    inputs = make_inputs(shape, device="cpu", weight_sets=1, seed=0)

    assert inputs.x.shape == (2, 5, 16)
    assert inputs.x.dtype is torch.float32
    assert inputs.out.shape == (5, 50)
    assert inputs.out.dtype is torch.float16
    assert [each.shape for each in inputs.weight_sets[0]] == [(2, 40, 16), (2, 10, 16)]


def test_weight_sets_differ_and_each_has_its_own_table_of_addresses():
    inputs = make_inputs(shrink_shape(num_slices=2), device="cpu", weight_sets=3, seed=0)

    tables = [tuple(operands.weights.tolist()) for operands in inputs.operands]
    assert tables == [tuple(each.data_ptr() for each in weights) for weights in inputs.weight_sets]
    assert len(set(tables)) == 3
    assert not torch.equal(inputs.weight_sets[0][0], inputs.weight_sets[1][0])


def test_a_single_slice_is_passed_as_the_weight_itself():
    inputs = make_inputs(expand_shape(), device="cpu", weight_sets=1, seed=0)

    assert inputs.operands[0].weights is inputs.weight_sets[0][0]
    assert inputs.operands[0].slice_starts == 0


def test_slices_of_different_size_bring_tables_of_sizes_and_strides():
    shape = expand_shape(slice_sizes=[40, 10, 24], rank=8)

    operands = make_inputs(shape, device="cpu", weight_sets=1, seed=0).operands[0]

    assert operands.slice_starts.tolist() == [0, 40, 50]
    assert operands.slice_sizes.tolist() == [40, 10, 24]
    assert [stride.tolist() for stride in operands.weight_strides] == [
        [320, 80, 192],
        [8, 8, 8],
        [1, 1, 1],
    ]


def test_slices_of_one_size_need_no_table_but_that_of_their_starts():
    operands = make_inputs(
        expand_shape(slice_sizes=[40, 40], rank=8), device="cpu", weight_sets=1, seed=0
    ).operands[0]

    assert operands.slice_starts.tolist() == [0, 40]
    assert operands.slice_sizes == 40
    assert operands.weight_strides == (320, 8, 1)


def test_weight_set_bytes_are_those_that_the_tensors_take():
    for shape in (shrink_shape(num_slices=3), expand_shape(slice_sizes=[40, 10])):
        weights = make_inputs(shape, device="cpu", weight_sets=1, seed=0).weight_sets[0]
        assert weight_set_bytes(shape) == sum(each.nbytes for each in weights)


def test_only_adapters_with_a_token_count_as_touched():
    shape = shrink_shape(num_tokens=2, max_loras=8, active_loras=4)

    assert weight_bytes_touched(shape) == weight_set_bytes(shape) // 4


def test_a_mapping_of_another_length_is_refused():
    with pytest.raises(InputError, match="one adapter per token, 5 of them"):
        make_inputs(
            shrink_shape(num_tokens=5),
            device="cpu",
            weight_sets=1,
            seed=0,
            token_lora_mapping=torch.zeros(4, dtype=torch.int32),
        )
