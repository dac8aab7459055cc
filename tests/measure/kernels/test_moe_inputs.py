"""The tensors of a MoE launch."""

from __future__ import annotations

import pytest
import torch

from autotune.errors import InputError
from autotune.launch.op import LoraOp
from autotune.measure.kernels.inputs import make_inputs, weight_bytes_touched, weight_set_bytes
from autotune.measure.kernels.routing import Routing
from tests.measure.kernels.cases import MOE_OPS, moe_shape

each_op = pytest.mark.parametrize("op", MOE_OPS, ids=lambda op: op.value)

#: Per op the sizes of x, of each slice's weight and of out: 24 tokens, 2 experts each, hidden size
#: 70, intermediate size 40, rank 8, 2 adapters, 4 experts.
SIZES = {
    LoraOp.W13_SHRINK: ((24, 70), [(2, 4, 8, 70)] * 2, (2, 48, 8)),
    LoraOp.W13_EXPAND: ((2, 48, 8), [(2, 4, 40, 8)] * 2, (48, 80)),
    LoraOp.W2_SHRINK: ((48, 40), [(2, 4, 8, 40)], (1, 48, 8)),
    LoraOp.W2_EXPAND: ((1, 48, 8), [(2, 4, 70, 8)], (48, 70)),
}


@each_op
def test_tensors_have_the_sizes_that_vllm_allocates(op):
    inputs = make_inputs(moe_shape(op), device="cpu", weight_sets=2, seed=0)
    x, weights, out = SIZES[op]

    assert inputs.x.shape == x
    assert inputs.out.shape == out
    assert [[each.shape for each in one] for one in inputs.weight_sets] == [weights] * 2
    for each in (inputs.x, inputs.out, *inputs.weight_sets[0]):
        assert each.dtype is torch.float16
        assert each.is_contiguous()


@each_op
def test_weights_are_passed_by_address_even_if_there_is_one(op):
    inputs = make_inputs(moe_shape(op), device="cpu", weight_sets=2, seed=0)

    assert inputs.moe is not None
    assert [one.weights.tolist() for one in inputs.moe.operands] == [
        [each.data_ptr() for each in weights] for weights in inputs.weight_sets
    ]


def test_the_ops_of_a_layer_get_the_same_tokens_and_experts():
    first, *others = (
        make_inputs(moe_shape(op), device="cpu", weight_sets=1, seed=5) for op in MOE_OPS
    )

    assert first.moe is not None
    for other in others:
        assert other.moe is not None
        assert torch.equal(other.moe.routing.topk_ids, first.moe.routing.topk_ids)
        assert torch.equal(other.tokens.token_lora_mapping, first.tokens.token_lora_mapping)


def test_an_alignment_is_made_once_for_every_block_m():
    inputs = make_inputs(moe_shape(LoraOp.W2_EXPAND), device="cpu", weight_sets=1, seed=0)

    assert inputs.moe is not None
    assert inputs.moe.alignment(16) is inputs.moe.alignment(16)
    assert inputs.moe.alignment(32) is not inputs.moe.alignment(16)


@each_op
def test_weight_set_bytes_are_those_that_the_tensors_take(op):
    weights = make_inputs(moe_shape(op), device="cpu", weight_sets=1, seed=0).weight_sets[0]

    assert weight_set_bytes(moe_shape(op)) == sum(each.nbytes for each in weights)


@pytest.mark.parametrize(("routing", "hit"), [("uniform", 8), ("hit=1", 1), ("hit=3", 3)])
def test_only_experts_with_a_token_count_as_touched(routing, hit):
    shape = moe_shape(LoraOp.W2_SHRINK, num_tokens=500, top_k=1, num_experts=8, routing=routing)

    assert weight_bytes_touched(shape) == weight_set_bytes(shape) // 8 * hit


def test_one_token_touches_its_own_experts_of_its_own_adapter():
    shape = moe_shape(LoraOp.W2_SHRINK, num_tokens=1, num_experts=16, max_loras=4)

    assert weight_bytes_touched(shape) == weight_set_bytes(shape) // (4 * 16) * 2


def test_rows_are_pairs_of_tokens_and_experts_in_the_order_of_the_tokens():
    shape = moe_shape(LoraOp.W2_SHRINK, num_tokens=3)
    inputs = make_inputs(
        shape,
        device="cpu",
        weight_sets=1,
        seed=0,
        token_lora_mapping=torch.tensor([1, -1, 0]),
    )

    assert inputs.row_loras.tolist() == [1, 1, -1, -1, 0, 0]


def test_a_routing_of_another_size_is_refused():
    routing = Routing(topk_ids=torch.zeros(24, 3), topk_weights=torch.zeros(24, 3))

    with pytest.raises(InputError, match="2 experts for each of 24 tokens: got a tensor of"):
        make_inputs(
            moe_shape(LoraOp.W2_SHRINK), device="cpu", weight_sets=1, seed=0, routing=routing
        )
