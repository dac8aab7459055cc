"""The fused-MoE kernel under the interpreter, against the float64 reference."""

from __future__ import annotations

import dataclasses
import functools
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from autotune.launch.config import KernelConfig
from autotune.launch.op import LoraOp
from autotune.launch.shape import KernelShape
from autotune.launch.sizes import is_shrink
from autotune.measure.kernels import fused_moe
from autotune.measure.kernels.builtin import BuiltinProvider
from autotune.measure.kernels.inputs import Inputs, make_inputs
from autotune.measure.kernels.reference import Check, check_result, expect, reference
from autotune.measure.kernels.routing import Routing
from tests.measure.kernels.cases import (
    H100,
    MOE_OPS,
    interpreted,
    make_config,
    moe_shape,
    naive_changes,
)
from tests.profiles import examples, some

pytestmark = [
    pytest.mark.slow,
    interpreted,
    # Triton 3.6's interpreter turns arrays of one element into numbers: an error from NumPy 2.4 on.
    pytest.mark.filterwarnings("ignore:Conversion of an array with ndim:DeprecationWarning"),
]

BLOCKS = st.sampled_from([16, 32])

#: The interpreter takes about a millisecond for a thread block, and every expert of every adapter
#: has some. These are few, and still several along each size of the small layer.
FEW_BLOCKS = {"block_n": 32, "block_k": 32}

each_op = pytest.mark.parametrize("op", MOE_OPS, ids=lambda op: op.value)

#: One of each kind: for what the ops of a kind do alike.
a_shrink_and_an_expand = pytest.mark.parametrize(
    "op",
    some([LoraOp.W13_SHRINK, LoraOp.W2_EXPAND], [LoraOp.W13_EXPAND, LoraOp.W2_SHRINK]),
    ids=lambda op: op.value,
)


#: Still sorted, with several blocks: 10 pairs * 8 > 2 experts * 2 adapters.
FEW_TOKENS = {"num_tokens": 5, "num_experts": 2}


def inputs_of(
    shape: KernelShape, mapping: list[int] | None = None, routing: Routing | None = None
) -> Inputs:
    return make_inputs(
        shape,
        device="cpu",
        weight_sets=2,
        seed=7,
        token_lora_mapping=None if mapping is None else torch.tensor(mapping),
        routing=routing,
    )


def check(inputs: Inputs, config: KernelConfig) -> Check:
    provider = BuiltinProvider()
    expected = expect(inputs, weight_set=1)
    return check_result(lambda: provider.launch(inputs, config, 1), inputs, expected)


@settings(max_examples=examples(12))
@given(data=st.data())
@each_op
def test_any_sizes_are_right(op, data):
    experts = data.draw(st.integers(2, 6))
    mapping = data.draw(st.lists(st.integers(-1, 1), min_size=1, max_size=20))
    shape = moe_shape(
        op,
        num_tokens=len(mapping),
        hidden_size=data.draw(st.integers(1, 60)),
        intermediate_size=data.draw(st.integers(1, 60)),
        rank=data.draw(st.sampled_from([1, 8, 16, 32])),
        num_experts=experts,
        top_k=data.draw(st.integers(1, min(3, experts))),
        routing=data.draw(st.sampled_from(["uniform", "zipf"])),
        fully_sharded=data.draw(st.booleans()),
    )
    config = make_config(
        op,
        block_m=data.draw(BLOCKS),
        block_n=data.draw(BLOCKS),
        block_k=data.draw(BLOCKS),
        split_k=data.draw(st.sampled_from([1, 4])) if is_shrink(op) else 1,
        group_size_m=data.draw(st.sampled_from([1, 2, 8])),
    )

    assert check(inputs_of(shape, mapping), config).problem == ""


@each_op
# Less than a block, one block and several; the others are like one of these.
@pytest.mark.parametrize("rank", some([8, 64, 256], [16, 32, 128]))
def test_every_rank_is_right_sorted_and_naive(op, rank):
    for sizes in (FEW_TOKENS, naive_changes()):
        shape = moe_shape(op, rank=rank, **sizes)
        assert check(inputs_of(shape), make_config(op, block_k=64, block_n=64)).problem == ""


@each_op
def test_vllms_default_is_right_sorted_and_naive(op):
    for sizes in (FEW_TOKENS, naive_changes()):
        shape = moe_shape(op, rank=16, **sizes)
        assert check(inputs_of(shape), BuiltinProvider().default(shape)).problem == ""


@a_shrink_and_an_expand
def test_a_launch_leaves_nothing_over_for_the_next(op):
    inputs, config = inputs_of(moe_shape(op, **FEW_TOKENS)), make_config(op, **FEW_BLOCKS)
    BuiltinProvider().launch(inputs, config, 0)

    assert check(inputs, config).problem == ""


@pytest.mark.parametrize("op", [LoraOp.W13_SHRINK, LoraOp.W13_EXPAND])
def test_w13_may_be_one_slice(op):
    shape = moe_shape(op, num_slices=1)

    assert check(inputs_of(shape), make_config(op)).problem == ""


@a_shrink_and_an_expand
def test_one_set_of_inputs_serves_every_block_m(op):
    inputs = inputs_of(moe_shape(op))
    for block_m in (64, 16, 32):
        assert check(inputs, make_config(op, block_m=block_m, **FEW_BLOCKS)).problem == ""


@a_shrink_and_an_expand
def test_experts_without_tokens_change_nothing(op):
    shape = moe_shape(op, num_experts=8, routing="hit=2")

    assert check(inputs_of(shape), make_config(op, **FEW_BLOCKS)).problem == ""


@a_shrink_and_an_expand
def test_one_expert_with_all_the_tokens_takes_several_blocks(op):
    shape = moe_shape(op, num_tokens=40, top_k=1, routing="hit=1", max_loras=1)

    assert check(inputs_of(shape), make_config(op, **FEW_BLOCKS)).problem == ""


@a_shrink_and_an_expand
@pytest.mark.parametrize("sizes", [{}, {"num_experts": 400}], ids=["sorted", "naive"])
def test_rows_of_tokens_without_a_lora_stay_as_they_were(op, sizes):
    shape, config = moe_shape(op, num_tokens=8, **sizes), make_config(op, **FEW_BLOCKS)

    assert check(inputs_of(shape, [0, -1, 1, -1] * 2), config).problem == ""
    assert check(inputs_of(shape, [-1] * 8), config).problem == ""


@a_shrink_and_an_expand
def test_an_adapter_without_weights_for_the_layer_is_left_out(op):
    inputs = inputs_of(moe_shape(op), [0, 1] * 12)
    assert inputs.moe is not None
    inputs.moe.adapter_enabled[1] = 0
    before = inputs.out.clone()

    BuiltinProvider().launch(inputs, make_config(op), 0)

    rows = inputs.row_loras == 1
    assert torch.equal(inputs.out[..., rows, :], before[..., rows, :])
    assert (inputs.out[..., ~rows, :] != before[..., ~rows, :]).any()


@pytest.mark.parametrize("op", [LoraOp.W13_SHRINK, LoraOp.W2_SHRINK])
@pytest.mark.parametrize("split_k", [2, 16])
def test_shrink_adds_up_the_parts_of_a_split(op, split_k):
    shape = moe_shape(op, hidden_size=300, intermediate_size=300, num_slices=1, **FEW_TOKENS)

    assert check(inputs_of(shape), make_config(op, split_k=split_k)).problem == ""


@pytest.mark.parametrize("op", [LoraOp.W13_EXPAND, LoraOp.W2_EXPAND])
def test_expand_is_never_split_whatever_the_configuration_says(op):
    assert BuiltinProvider().forced(moe_shape(op), H100) == {"split_k": 1}
    config = make_config(op, split_k=4, **FEW_BLOCKS)
    assert check(inputs_of(moe_shape(op)), config).problem == ""


@pytest.mark.parametrize("group_size_m", [1, 3, 8])
def test_every_tile_is_covered_whatever_the_grouping(group_size_m):
    shape = moe_shape(LoraOp.W2_EXPAND, num_tokens=50, max_loras=1)
    config = make_config(LoraOp.W2_EXPAND, group_size_m=group_size_m, **FEW_BLOCKS)

    assert check(inputs_of(shape), config).problem == ""


def test_only_w2_expand_multiplies_by_the_routed_weights():
    for op in MOE_OPS:
        shape = moe_shape(op)
        routed = inputs_of(shape)
        assert routed.moe is not None
        twice = Routing(
            topk_ids=routed.moe.routing.topk_ids, topk_weights=routed.moe.routing.topk_weights * 2
        )
        other = inputs_of(shape, routing=twice)
        ratio = 2 if op is LoraOp.W2_EXPAND else 1

        assert torch.allclose(reference(other, 0), reference(routed, 0) * ratio)
        assert check(other, make_config(op, **FEW_BLOCKS)).problem == ""


def test_the_four_kernels_in_a_row_are_the_layers_lora():
    """Each kernel reads what the one before wrote; the base layers in between are the identity."""
    layer = {"num_tokens": 20, "rank": 16, "num_slices": 1, "routing": "zipf"}
    mapping = [0, 1, -1, 1] * 5
    w13_shrink, w13_expand, w2_shrink, w2_expand = (
        inputs_of(moe_shape(op, **layer), mapping) for op in MOE_OPS
    )
    provider, config = BuiltinProvider(), make_config(LoraOp.W13_SHRINK)

    provider.launch(w13_shrink, config, 0)
    w13_expand.x.copy_(w13_shrink.out)
    provider.launch(w13_expand, config, 0)
    w2_shrink.x.copy_(w13_expand.out)
    provider.launch(w2_shrink, config, 0)
    w2_expand.x.copy_(w2_shrink.out)
    provider.launch(w2_expand, config, 0)

    assert w13_shrink.moe is not None
    routing = w13_shrink.moe.routing
    for token, lora in enumerate(mapping):
        for place, expert in enumerate(routing.topk_ids[token].tolist()):
            value = w13_shrink.x[token].double()
            for inputs in (w13_shrink, w13_expand, w2_shrink, w2_expand):
                value = inputs.weight_sets[0][0][lora, expert].double() @ value
            value *= routing.topk_weights[token, place] * (lora >= 0)
            got = w2_expand.out[token * 2 + place].double()
            assert torch.allclose(got, value, rtol=2e-2, atol=2e-2)


# ------------------------------------------------------------------ layers on several GPUs

SHARDED = {"fully_sharded": True, "shards": 2, "hidden_size": 72}


@each_op
def test_a_part_of_a_fully_sharded_layer_is_right(op):
    inputs = inputs_of(moe_shape(op, **SHARDED), mapping=[0, 1, -1, 1] * 6)

    assert check(inputs, make_config(op, **FEW_BLOCKS)).problem == ""


def test_fully_sharded_kernels_have_the_sizes_that_vllm_allocates():
    """w13's A has a part of the rank, its B all of it; w2's B writes a part of the hidden size."""
    w13_shrink, w13_expand, w2_shrink, w2_expand = (
        inputs_of(moe_shape(op, **SHARDED)) for op in MOE_OPS
    )

    weights = [each.weight_sets[0][0].shape[-2:] for each in (w13_shrink, w13_expand)]
    assert weights == [(8, 72), (40, 16)]  # rank 8 of 16
    assert w13_shrink.out.shape[-1] * 2 == w13_expand.x.shape[-1] == 16
    assert w2_shrink.weight_sets[0][0].shape[-2:] == (8, 40)
    assert w2_expand.weight_sets[0][0].shape[-2:] == (36, 8)
    assert w2_expand.out.shape[-1] == 36


@a_shrink_and_an_expand
@pytest.mark.parametrize("elsewhere", [4, 60])
def test_rows_of_experts_on_other_gpus_stay_as_they_were(op, elsewhere):
    shape = moe_shape(op, num_tokens=12, global_experts=4 + elsewhere)
    inputs = inputs_of(shape, mapping=[0, 1, -1, 1] * 3)

    assert inputs.moe is not None
    away = inputs.moe.routing.topk_ids.view(-1) >= 4
    assert away.any()
    assert not away.all()
    assert (inputs.row_loras[away] == -1).all()
    assert check(inputs, make_config(op, **FEW_BLOCKS)).problem == ""


def test_a_gpu_may_have_fewer_experts_than_a_token_goes_to():
    shape = moe_shape(LoraOp.W13_SHRINK, num_experts=2, top_k=6, global_experts=16)

    assert check(inputs_of(shape), make_config(shape.op, **FEW_BLOCKS)).problem == ""


# ------------------------------------------------------------------ the reference and the check


@a_shrink_and_an_expand
def test_the_reference_is_each_rows_product_with_its_own_expert(op):
    mapping = [0, -1, 1] * 8
    inputs = inputs_of(moe_shape(op), mapping)
    assert inputs.moe is not None
    got = reference(inputs, 1)

    for token, lora in enumerate(mapping):
        for place, expert in enumerate(inputs.moe.routing.topk_ids[token].tolist()):
            row, parts = token * 2 + place, []
            for slice_id, weight in enumerate(inputs.weight_sets[1]):
                if is_shrink(op):
                    x = inputs.x[token if op is LoraOp.W13_SHRINK else row]
                else:
                    x = inputs.x[slice_id, row]
                parts.append(weight[lora, expert].double() @ x.double() * (lora >= 0))
            if op is LoraOp.W2_EXPAND:
                parts[0] *= inputs.moe.routing.topk_weights[token, place].double()
            if is_shrink(op):
                assert torch.allclose(got[:, row], torch.stack(parts))
            else:
                assert torch.allclose(got[row], torch.cat(parts))


@a_shrink_and_an_expand
def test_a_wrong_launch_is_found(op):
    inputs = inputs_of(moe_shape(op))
    expected, before = expect(inputs), inputs.out.clone()
    launch = functools.partial(BuiltinProvider().launch, inputs, make_config(op, **FEW_BLOCKS), 0)
    assert check_result(launch, inputs, expected).problem == ""
    right = inputs.out.clone()
    spoiled = {each: right.clone() for each in ("expert", "row", "missing row", "value")}
    spoiled["expert"][..., 0, :] = right[..., 1, :]
    spoiled["row"][..., 0, :] = right[..., 20, :]
    spoiled["missing row"][..., 5, :] = before[..., 5, :]
    spoiled["value"][..., 5, 3] += 4

    for what, out in spoiled.items():
        fake = functools.partial(_leave, inputs, out)
        assert check_result(fake, inputs, expected).problem, what


def _leave(inputs: Inputs, out: torch.Tensor) -> None:
    inputs.out.copy_(out)


@each_op
def test_a_kernel_that_weighs_where_it_must_not_is_found(op):
    inputs = inputs_of(moe_shape(op))
    assert inputs.moe is not None

    def launch() -> None:
        config = make_config(op)
        assert inputs.moe is not None
        arguments: dict[str, Any] = fused_moe.arguments(
            inputs.shape, config, inputs.moe.operands[0], inputs.moe.alignment(16)
        )
        arguments["mul_routed_weight"] = not arguments["mul_routed_weight"]
        if is_shrink(op):
            inputs.out.zero_()
        fused_moe.fused_moe_kernel[fused_moe.grid(inputs.shape, config)](**arguments)

    assert "exceeds" in check_result(launch, inputs, expect(inputs)).problem


def test_inputs_of_another_kind_are_refused():
    inputs = dataclasses.replace(inputs_of(moe_shape(LoraOp.W2_SHRINK)), moe=None)

    with pytest.raises(ValueError, match="inputs of fused_moe_lora_w2_shrink have no experts"):
        fused_moe.launch(inputs, make_config(LoraOp.W2_SHRINK), 0)
