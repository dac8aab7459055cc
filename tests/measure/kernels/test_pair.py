"""A shrink and the expand after it in one launch: its inputs and its reference."""

from __future__ import annotations

import pytest
import torch

from autotune.launch.op import LoraOp
from autotune.measure.kernels.inputs import inputs_without_memory, make_inputs, weight_set_bytes
from autotune.measure.kernels.layout import pair_of
from autotune.measure.kernels.reference import check_result, expect, reference
from tests.measure.kernels.cases import MOE_OPS, moe_shape

each_op = pytest.mark.parametrize("op", MOE_OPS, ids=lambda op: op.value)

MAPPING = torch.tensor([0, -1, 1] * 8)


def pair_inputs(op: LoraOp, **changes: int):
    return make_inputs(
        moe_shape(op, **changes),
        device="cpu",
        weight_sets=2,
        seed=3,
        token_lora_mapping=MAPPING,
        pair=True,
    )


@each_op
def test_a_pair_reads_what_the_shrink_reads_and_writes_what_the_expand_writes(op):
    inputs = pair_inputs(op)
    shrink, expand = (
        make_inputs(moe_shape(each), device="cpu", weight_sets=1, seed=3) for each in pair_of(op)
    )
    sizes = [tuple(each.shape) for each in inputs.weight_sets[1]]

    assert inputs.x.shape == shrink.x.shape
    assert inputs.out.shape == expand.out.shape
    assert sizes == [tuple(each.shape) for each in (*shrink.weight_sets[0], *expand.weight_sets[0])]
    assert weight_set_bytes(inputs.shape, pair=True) == sum(
        each.nbytes for each in inputs.weight_sets[0]
    )
    without = inputs_without_memory(inputs.shape, pair=True)
    assert [tuple(each.shape) for each in without.weight_sets[0]] == sizes
    assert (without.x.shape, without.out.shape) == (inputs.x.shape, inputs.out.shape)


@each_op
def test_both_shapes_of_a_pair_get_the_same_numbers(op):
    first, second = (pair_inputs(each) for each in pair_of(op))

    assert torch.equal(first.x, second.x)
    assert torch.equal(reference(first, 1), reference(second, 1))


@each_op
def test_the_reference_is_each_rows_product_with_both_matrices_of_its_own_expert(op):
    inputs = pair_inputs(op)
    is_w2, half = pair_of(op)[0] is LoraOp.W2_SHRINK, len(inputs.weight_sets[1]) // 2
    assert inputs.moe is not None
    got = reference(inputs, 1)

    for token, lora in enumerate(MAPPING.tolist()):
        for place, expert in enumerate(inputs.moe.routing.topk_ids[token].tolist()):
            row, parts = token * 2 + place, []
            for a, b in zip(
                inputs.weight_sets[1][:half], inputs.weight_sets[1][half:], strict=True
            ):
                value = a[lora, expert].double() @ inputs.x[row if is_w2 else token].double()
                parts.append(b[lora, expert].double() @ value * (lora >= 0))
            weight = inputs.moe.routing.topk_weights[token, place].double() if is_w2 else 1.0
            assert torch.allclose(got[row], torch.cat(parts) * weight)


@each_op
def test_a_launch_that_adds_to_the_output_is_right_and_one_that_does_not_is_found(op):
    inputs = pair_inputs(op)
    expected = expect(inputs, weight_set=1)
    delta = reference(inputs, 1)

    assert check_result(lambda: inputs.out.add_(delta), inputs, expected).problem == ""
    assert "rows of tokens without a LoRA" in (
        check_result(lambda: inputs.out.copy_(delta), inputs, expected).problem
    )
    shrunk = delta * torch.linspace(0.9, 1.1, delta.shape[1])
    assert "exceeds" in check_result(lambda: inputs.out.add_(shrunk), inputs, expected).problem
