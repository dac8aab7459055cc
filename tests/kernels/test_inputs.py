"""The tensors of a launch and their metadata."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from autotune.errors import InputError
from autotune.kernels.inputs import (
    make_inputs,
    spread_tokens,
    token_metadata,
    weight_bytes_touched,
    weight_set_bytes,
)
from tests.kernels.cases import expand_shape, shrink_shape

MAPPINGS = {
    "one adapter": ([1, 1, 1], [0, 1, 2], [3, 0, 0, 0], [0, 3, 0, 0, 0], [1, -1, -1, -1]),
    "no LoRA sorts first": (
        [2, -1, 0, 2, -1],
        [1, 4, 2, 0, 3],
        [2, 1, 2, 0],
        [0, 2, 3, 5, 0],
        [-1, 0, 2, -1],
    ),
    "every slot in use": (
        [2, 1, 0, -1],
        [3, 2, 1, 0],
        [1, 1, 1, 1],
        [0, 1, 2, 3, 4],
        [-1, 0, 1, 2],
    ),
    "no LoRA at all": ([-1, -1], [0, 1], [2, 0, 0, 0], [0, 2, 0, 0, 0], [-1, -1, -1, -1]),
}


@pytest.mark.parametrize("case", MAPPINGS.values(), ids=MAPPINGS.keys())
def test_metadata_is_laid_out_as_vllm_lays_it_out(case):
    mapping, indices, counts, starts, ids = case

    tokens = token_metadata(torch.tensor(mapping), max_loras=3)

    assert tokens.token_lora_mapping.tolist() == mapping
    assert tokens.token_indices_sorted_by_lora_ids.tolist() == indices
    assert tokens.num_tokens_per_lora.tolist() == counts
    assert tokens.lora_token_start_loc.tolist() == starts
    assert tokens.lora_ids.tolist() == ids


def test_metadata_is_int32_throughout():
    tokens = token_metadata(torch.tensor([0, -1]), max_loras=1)

    fields = [getattr(tokens, name) for name in tokens.__slots__]
    assert {field.dtype for field in fields} == {torch.int32}


@given(st.lists(st.integers(-1, 4), min_size=1, max_size=40))
def test_every_slot_points_at_exactly_the_tokens_of_its_adapter(mapping):
    tokens = token_metadata(torch.tensor(mapping), max_loras=5)

    seen = []
    for slot, lora in enumerate(tokens.lora_ids.tolist()):
        start = int(tokens.lora_token_start_loc[slot])
        stop = start + int(tokens.num_tokens_per_lora[slot])
        rows = tokens.token_indices_sorted_by_lora_ids[start:stop].tolist()
        assert [mapping[row] for row in rows] == [lora] * len(rows)
        seen += rows
    assert sorted(seen) == list(range(len(mapping)))


@pytest.mark.parametrize("mapping", [[0, 2], [-2, 0]])
def test_an_adapter_without_room_is_refused(mapping):
    with pytest.raises(InputError, match="between -1 \\(none\\) and 1"):
        token_metadata(torch.tensor(mapping), max_loras=2)


def test_tokens_are_spread_evenly_over_the_active_adapters():
    shape = shrink_shape(num_tokens=11, max_loras=8, active_loras=3)

    assert sorted(spread_tokens(shape, seed=0).bincount().tolist()) == [3, 4, 4]


def test_fewer_tokens_than_adapters_use_one_adapter_each():
    shape = shrink_shape(num_tokens=3, max_loras=8)

    assert sorted(spread_tokens(shape, seed=0).tolist()) == [0, 1, 2]


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
