"""The Triton kernels under the interpreter, against the float64 reference."""

from __future__ import annotations

import functools

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from autotune.launch.config import KernelConfig
from autotune.launch.op import LoraOp
from autotune.launch.shape import KernelShape
from autotune.measure.kernels.builtin import BuiltinProvider
from autotune.measure.kernels.inputs import make_inputs
from autotune.measure.kernels.reference import Check, check_result, expect
from tests.measure.kernels.cases import expand_shape, interpreted, make_config, shrink_shape
from tests.profiles import examples

pytestmark = [
    pytest.mark.slow,
    interpreted,
    # Triton 3.6's interpreter turns arrays of one element into numbers: an error from NumPy 2.4 on.
    pytest.mark.filterwarnings("ignore:Conversion of an array with ndim:DeprecationWarning"),
]

BLOCKS = st.sampled_from([16, 32])
MAX_LORAS = 3
TOKEN_MAPPINGS = st.lists(st.integers(-1, MAX_LORAS - 1), min_size=1, max_size=40)
RANKS = st.sampled_from([1, 8, 16, 32])


def check(
    shape: KernelShape,
    config: KernelConfig,
    mapping: list[int] | None = None,
    scaling: float = 1.0,
) -> Check:
    inputs = make_inputs(
        shape,
        device="cpu",
        weight_sets=2,
        seed=7,
        token_lora_mapping=None if mapping is None else torch.tensor(mapping),
        scaling=scaling,
    )
    provider = BuiltinProvider()
    expected = expect(inputs, weight_set=1)
    return check_result(lambda: provider.launch(inputs, config, 1), inputs, expected)


@settings(max_examples=examples(60))
@given(
    mapping=TOKEN_MAPPINGS,
    hidden_size=st.integers(1, 150),
    rank=RANKS,
    num_slices=st.integers(1, 3),
    blocks=st.tuples(BLOCKS, BLOCKS, BLOCKS),
    split_k=st.sampled_from([1, 4]),
    group_size_m=st.sampled_from([1, 2, 8]),
    scaling=st.sampled_from([1.0, 0.25]),
)
def test_shrink_is_right_for_any_sizes(  # noqa: PLR0913, PLR0917 - one per strategy
    mapping, hidden_size, rank, num_slices, blocks, split_k, group_size_m, scaling
):
    shape = shrink_shape(
        num_tokens=len(mapping),
        hidden_size=hidden_size,
        rank=rank,
        num_slices=num_slices,
        max_loras=MAX_LORAS,
    )
    block_m, block_n, block_k = blocks
    config = make_config(
        LoraOp.SHRINK,
        block_m=block_m,
        block_n=block_n,
        block_k=block_k,
        split_k=split_k,
        group_size_m=group_size_m,
    )

    assert check(shape, config, mapping, scaling).problem == ""


@settings(max_examples=examples(60))
@given(
    mapping=TOKEN_MAPPINGS,
    slice_sizes=st.lists(st.integers(1, 70), min_size=1, max_size=3),
    rank=RANKS,
    add_inputs=st.booleans(),
    blocks=st.tuples(BLOCKS, BLOCKS, BLOCKS),
)
def test_expand_is_right_for_any_sizes(mapping, slice_sizes, rank, add_inputs, blocks):
    shape = expand_shape(
        num_tokens=len(mapping),
        slice_sizes=slice_sizes,
        rank=rank,
        max_loras=MAX_LORAS,
        add_inputs=add_inputs,
    )
    block_m, block_n, block_k = blocks
    config = make_config(LoraOp.EXPAND, block_m=block_m, block_n=block_n, block_k=block_k)

    assert check(shape, config, mapping).problem == ""


@pytest.mark.parametrize("slices", [[48, 48], [48, 48, 48]])
@pytest.mark.parametrize("add_inputs", [True, False])
def test_expand_is_right_for_slices_of_one_size(slices, add_inputs):
    shape = expand_shape(slice_sizes=slices, add_inputs=add_inputs)

    assert check(shape, make_config(LoraOp.EXPAND), [0, -1, 1, 1, 0]).problem == ""


@pytest.mark.parametrize(
    "shape", [shrink_shape(), expand_shape()], ids=lambda shape: shape.op.value
)
def test_a_launch_leaves_nothing_over_for_the_next(shape):
    inputs = make_inputs(shape, device="cpu", weight_sets=2, seed=7)
    launch = functools.partial(BuiltinProvider().launch, inputs, make_config(shape.op))
    launch(0)

    again = check_result(lambda: launch(1), inputs, expect(inputs, weight_set=1))

    assert again.problem == ""


def test_expand_keeps_out_of_the_columns_of_a_smaller_slice_beside_it():
    shape = expand_shape(slice_sizes=[100, 5, 33], num_tokens=3)

    assert check(shape, make_config(LoraOp.EXPAND, block_n=32)).problem == ""


@pytest.mark.parametrize("hidden_size", [64, 65, 127, 128])
@pytest.mark.parametrize("split_k", [1, 4])
def test_shrink_masks_only_what_lies_past_the_hidden_size(hidden_size, split_k):
    shape = shrink_shape(hidden_size=hidden_size)

    assert check(shape, make_config(LoraOp.SHRINK, split_k=split_k)).problem == ""


def test_shrink_with_more_parts_than_blocks_of_k_is_right():
    config = make_config(LoraOp.SHRINK, block_k=32, split_k=8)

    assert check(shrink_shape(hidden_size=40), config).problem == ""


@pytest.mark.parametrize("group_size_m", [1, 2, 3, 8])
def test_shrink_covers_every_tile_whatever_the_grouping(group_size_m):
    shape = shrink_shape(num_tokens=70, hidden_size=32, rank=32, max_loras=1)
    config = make_config(LoraOp.SHRINK, group_size_m=group_size_m)

    assert check(shape, config).problem == ""


def test_vllms_defaults_are_right_on_both_ops():
    for shape in (shrink_shape(hidden_size=300), expand_shape(slice_sizes=[70, 33])):
        assert check(shape, BuiltinProvider().default(shape)).problem == ""


def test_a_batch_without_any_lora_writes_nothing():
    for shape in (shrink_shape(), expand_shape()):
        assert check(shape, make_config(shape.op), [-1] * 5).problem == ""


def test_every_launch_of_expand_adds_to_the_output_again():
    shape = expand_shape()
    inputs = make_inputs(shape, device="cpu", weight_sets=1, seed=0)
    provider, config = BuiltinProvider(), make_config(LoraOp.EXPAND)

    provider.launch(inputs, config, 0)
    once = inputs.out.clone()
    provider.launch(inputs, config, 0)

    assert torch.equal(inputs.out, once * 2)


def test_shrink_starts_from_zero_with_every_launch():
    inputs = make_inputs(shrink_shape(), device="cpu", weight_sets=1, seed=0)
    provider, config = BuiltinProvider(), make_config(LoraOp.SHRINK, split_k=4)

    provider.launch(inputs, config, 0)
    once = inputs.out.clone()
    provider.launch(inputs, config, 0)

    assert torch.allclose(inputs.out, once, rtol=1e-5)
