"""Which token uses which adapter, in the tables that vLLM's kernels read."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from autotune.errors import InputError
from autotune.measure.kernels.tokens import spread_tokens, token_metadata
from tests.measure.kernels.cases import shrink_shape

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
