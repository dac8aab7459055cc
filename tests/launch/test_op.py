"""vLLM's names and keys, against literal values of its contract."""

import pytest

from autotune.launch.op import (
    DENSE_OPS,
    MOE_OPS,
    VLLM_RANKS,
    DenseKey,
    LoraOp,
    MoeKey,
    gpu_file_prefix,
    key_of,
    key_text,
)


def test_spaces_and_hyphens_become_underscores_and_nothing_else_changes():
    assert gpu_file_prefix("NVIDIA A100-SXM4-80GB") == "NVIDIA_A100_SXM4_80GB"
    assert gpu_file_prefix("Quadro T1000/PCIe") == "Quadro_T1000/PCIe"


@pytest.mark.parametrize(
    ("op", "add_inputs", "name"),
    [
        (LoraOp.SHRINK, False, "NVIDIA_H100_80GB_HBM3_SHRINK.json"),
        (LoraOp.SHRINK, True, "NVIDIA_H100_80GB_HBM3_SHRINK.json"),
        (LoraOp.EXPAND, True, "NVIDIA_H100_80GB_HBM3_EXPAND_TRUE.json"),
        (LoraOp.EXPAND, False, "NVIDIA_H100_80GB_HBM3_EXPAND_FALSE.json"),
        (LoraOp.W13_SHRINK, True, "NVIDIA_H100_80GB_HBM3_FUSED_MOE_LORA_W13_SHRINK.json"),
        (LoraOp.W2_EXPAND, False, "NVIDIA_H100_80GB_HBM3_FUSED_MOE_LORA_W2_EXPAND.json"),
    ],
)
def test_each_op_has_the_file_that_vllm_opens(op, add_inputs, name):
    assert op.file_name("NVIDIA H100 80GB HBM3", add_inputs=add_inputs) == name


@pytest.mark.parametrize(
    ("op", "key"),
    [(LoraOp.SHRINK, (9, 3, 16, 4096, 64)), (LoraOp.EXPAND, (9, 3, 16, 64, 4096))],
)
def test_the_first_key_counts_the_slot_for_no_lora_and_k_is_what_is_summed_over(op, key):
    asked = op.lookup_key(max_loras=8, num_slices=3, num_tokens=16, hidden_size=4096, rank=64)
    assert asked == key


@pytest.mark.parametrize("op", MOE_OPS)
def test_moe_ops_are_asked_for_with_max_loras_as_given_and_k_is_always_the_rank(op):
    sizes = {"num_tokens": 16, "hidden_size": 2048, "rank": 64, "intermediate_size": 768}
    assert op.lookup_key(max_loras=8, num_slices=2, **sizes) == (8, 2, 16, 64, 2048, 768)


def test_a_key_of_five_levels_is_a_dense_ops_and_one_of_six_a_moe_ops():
    assert key_of([9, 3, 16, 4096, 64]) == DenseKey(max_loras=9, num_slices=3, m=16, k=4096, n=64)
    assert key_of([8, 2, 16, 64, 2048, 768]) == MoeKey(8, 2, 16, k=64, n=2048, i=768)
    with pytest.raises(TypeError, match="missing 1 required positional argument: 'n'"):
        key_of([9, 3, 16, 4096])


def test_a_key_is_written_with_slashes():
    assert key_text(DenseKey(9, 3, 16, 4096, 64)) == "9/3/16/4096/64"


def test_the_moe_ops_come_in_the_order_of_their_launches():
    assert MOE_OPS == (LoraOp.W13_SHRINK, LoraOp.W13_EXPAND, LoraOp.W2_SHRINK, LoraOp.W2_EXPAND)


def test_an_entry_has_every_parameter_without_which_vllm_stops():
    needed = {"block_m", "block_n", "block_k", "num_warps", "num_stages", "num_ctas"}
    assert set(LoraOp.SHRINK.parameters) == needed | {"split_k", "group_size_m"}
    assert set(LoraOp.EXPAND.parameters) == needed


def test_vllm_does_without_group_size_m_and_without_any_parameter_of_a_moe_op():
    for op in DENSE_OPS:
        assert set(op.parameters) - set(op.required_parameters) <= {"group_size_m"}
    assert all(op.required_parameters == () for op in LoraOp if op.is_moe)


def test_a_moe_file_has_one_level_more():
    levels = ("max_loras", "num_slices", "m", "k", "n")
    for op in LoraOp:
        assert op.levels == ((*levels, "i") if op.is_moe else levels)
        assert op.is_moe is (op not in DENSE_OPS)


def test_a_moe_entry_is_read_in_either_case_and_a_dense_one_in_lower_case_only():
    upper = {"BLOCK_SIZE_M": 16, "GROUP_SIZE_M": 8, "NUM_WARPS": 4, "SPLIT_K": 1}
    lower = {"block_m": 16, "group_size_m": 8, "num_warps": 4, "split_k": 1}
    assert LoraOp.W2_SHRINK.values_in(upper) == LoraOp.W2_SHRINK.values_in(lower) == lower
    assert LoraOp.SHRINK.values_in(lower | {"BLOCK_SIZE_M": 32, "note": "x"}) == lower


def test_the_ranks_are_those_of_max_lora_rank():
    assert VLLM_RANKS == (1, 8, 16, 32, 64, 128, 256, 320, 512)
