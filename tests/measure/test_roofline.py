"""The roofline's time of a launch, compared with figures worked out by hand."""

import pytest

from autotune.launch.shape import KernelShape
from autotune.measure.measurement import Ceilings
from autotune.measure.roofline import bytes_moved, floor_us, flops
from tests.recordings import EXPAND, SHRINK

SLOW_MEMORY = Ceilings(copy_bytes_per_s=1e12, matmul_flops_per_s=1e15)
SLOW_MATMUL = Ceilings(copy_bytes_per_s=1e15, matmul_flops_per_s=1e12)


def shape(table, **changes) -> KernelShape:
    return KernelShape.from_mapping(table | changes)


def test_a_shrink_reads_activations_and_weights_and_writes_float32():
    x, weights, out = 16 * 4096 * 2, 3 * 8 * 16 * 4096 * 2, 3 * 16 * 16 * 4
    assert bytes_moved(shape(SHRINK)) == x + weights + out == 3_279_872


def test_an_expand_reads_its_output_before_it_adds_to_it():
    x, weights, out = 3 * 64 * 16 * 4, 8 * 6144 * 16 * 2, 64 * 6144 * 2
    assert bytes_moved(shape(EXPAND)) == x + weights + 2 * out == 3_158_016
    assert bytes_moved(shape(EXPAND, add_inputs=False)) == x + weights + out == 2_371_584


def test_only_weights_of_adapters_with_a_token_are_moved():
    x, weights, out = 4096 * 2, 3 * 16 * 4096 * 2, 3 * 16 * 4
    assert bytes_moved(shape(SHRINK, num_tokens=1)) == x + weights + out
    eight, two = shape(SHRINK), shape(SHRINK, active_loras=2)
    assert bytes_moved(eight) - bytes_moved(two) == 6 * 3 * 16 * 4096 * 2


@pytest.mark.parametrize(
    ("table", "count"), [(SHRINK, 2 * 16 * 3 * 16 * 4096), (EXPAND, 2 * 64 * 16 * 6144)]
)
def test_every_slice_multiplies_and_adds_m_n_k_times(table, count):
    assert flops(shape(table)) == count


@pytest.mark.parametrize(
    ("ceilings", "expected_us"), [(SLOW_MEMORY, 3.279872), (SLOW_MATMUL, 6.291456)]
)
def test_the_floor_is_the_longer_of_moving_and_multiplying(ceilings, expected_us):
    assert floor_us(shape(SHRINK), ceilings) == pytest.approx(expected_us)


def test_a_moe_op_counts_the_experts_that_get_tokens_and_top_k_rows_a_token():
    w13 = {"op": "fused_moe_lora_w13_shrink", "num_tokens": 4, "hidden_size": 64, "rank": 16}
    w13 |= {"max_loras": 1, "num_experts": 8, "top_k": 2, "intermediate_size": 96}
    table = w13 | {"routing": "hit=2"}
    x, weights, out = 4 * 64 * 2, 2 * 2 * 16 * 64 * 2, 2 * 8 * 16 * 2
    assert bytes_moved(shape(table)) == x + weights + out
    assert flops(shape(table)) == 2 * (2 * 8 * 16 * 64)

    expand = shape(table, op="fused_moe_lora_w13_expand")
    x, weights, out = 2 * 8 * 16 * 2, 2 * 2 * 96 * 16 * 2, 8 * 192 * 2
    assert bytes_moved(expand) == x + weights + 2 * out


def test_one_launch_for_a_shrink_and_its_expand_moves_both_weights_and_nothing_in_between():
    w2 = {"op": "fused_moe_lora_w2_shrink", "num_tokens": 4, "hidden_size": 64, "rank": 16}
    w2 |= {"max_loras": 1, "num_experts": 8, "top_k": 2, "intermediate_size": 96}
    table = w2 | {"routing": "hit=2"}
    x, weights, out = 8 * 96 * 2, 2 * (16 * 96 + 64 * 16) * 2, 8 * 64 * 2
    for op in ("fused_moe_lora_w2_shrink", "fused_moe_lora_w2_expand"):
        assert bytes_moved(shape(table, op=op), pair=True) == x + weights + 2 * out
        assert flops(shape(table, op=op), pair=True) == 2 * 8 * (16 * 96 + 64 * 16)
