"""Kernel shapes: what a table may leave out, what is refused, and what vLLM looks up."""

import pytest
from hypothesis import given

from autotune.errors import ShapeError
from autotune.ops import LoraOp
from autotune.shapes import KernelShape
from tests.export.examples import shapes

SHRINK = {"op": "shrink", "num_tokens": 16, "hidden_size": 4096, "rank": 16, "max_loras": 8}
EXPAND = SHRINK | {"op": "expand"}


def test_a_shrink_takes_the_usual_values_for_what_is_absent():
    assert KernelShape.from_mapping(SHRINK) == KernelShape(
        op=LoraOp.SHRINK,
        num_tokens=16,
        hidden_size=4096,
        rank=16,
        num_slices=1,
        slice_sizes=(),
        max_loras=8,
        active_loras=8,
        dtype="bfloat16",
        add_inputs=False,
    )


def test_an_expand_adds_to_its_output_and_has_slices_of_one_size_where_nothing_is_said():
    shape = KernelShape.from_mapping(EXPAND | {"num_slices": 2})

    assert shape.add_inputs is True
    assert shape.slice_sizes == (4096, 4096)


def test_slice_sizes_say_how_many_slices_there_are_and_which_is_largest():
    table = {key: value for key, value in EXPAND.items() if key != "hidden_size"}
    shape = KernelShape.from_mapping(table | {"slice_sizes": [1024, 4096, 1024]})

    assert (shape.hidden_size, shape.num_slices) == (4096, 3)
    assert shape.slice_sizes == (1024, 4096, 1024)


def test_slice_sizes_may_agree_with_what_they_say_already():
    table = {"slice_sizes": [4096, 1024], "num_slices": 2}

    assert KernelShape.from_mapping(EXPAND | table).slice_sizes == (4096, 1024)


@pytest.mark.parametrize(
    ("table", "message"),
    [
        (SHRINK | {"hiden_size": 1}, "a shape has no field 'hiden_size'; it has active_loras"),
        (SHRINK | {"op": "shrnk"}, "unknown op: got 'shrnk'; use one of shrink, expand"),
        ({}, "unknown op: got None"),
        (SHRINK | {"op": ["shrink"]}, r"unknown op: got \['shrink'\]"),
        ({"op": "shrink"}, "num_tokens must be a whole number: got nothing"),
        ({"op": "expand"}, "hidden_size must be a whole number: got nothing"),
        (SHRINK | {"num_tokens": 0}, "num_tokens must be 1 or more: got 0"),
        (SHRINK | {"num_tokens": "16"}, "num_tokens must be a whole number: got '16'"),
        (SHRINK | {"num_tokens": 16.0}, "num_tokens must be a whole number: got 16.0"),
        (SHRINK | {"num_tokens": True}, "num_tokens must be a whole number: got True"),
        (SHRINK | {"hidden_size": -1}, "hidden_size must be 1 or more: got -1"),
        (SHRINK | {"max_loras": None}, "max_loras must be a whole number: got nothing"),
        (SHRINK | {"num_slices": 0}, "num_slices must be 1 or more: got 0"),
        (EXPAND | {"num_slices": 0}, "num_slices must be 1 or more: got 0"),
        (SHRINK | {"rank": 24}, "rank is not one that vLLM allows: got 24; use 1, 8, 16"),
        (SHRINK | {"active_loras": 9}, "active_loras cannot exceed max_loras: got 9 of 8"),
        (SHRINK | {"active_loras": 0}, "active_loras must be 1 or more: got 0"),
        (SHRINK | {"dtype": "float32"}, "unknown dtype: got 'float32'; use bfloat16 or float16"),
        (SHRINK | {"dtype": ["float16"]}, r"unknown dtype: got \['float16'\]"),
        (SHRINK | {"slice_sizes": [1]}, r"shrink takes num_slices, not slice_sizes: got \[1\]"),
        (SHRINK | {"slice_sizes": 0}, "shrink takes num_slices, not slice_sizes: got 0"),
        (EXPAND | {"slice_sizes": 4096}, "slice_sizes must be a list of sizes: got 4096"),
        (EXPAND | {"slice_sizes": []}, r"slice_sizes must be a list of sizes: got \[\]"),
        (EXPAND | {"slice_sizes": False}, "slice_sizes must be a list of sizes: got False"),
        (EXPAND | {"slice_sizes": [0]}, "slice_sizes must be 1 or more: got 0"),
        (EXPAND | {"slice_sizes": [1024]}, r"hidden_size contradicts slice_sizes \[1024\]: .*4096"),
        (
            EXPAND | {"slice_sizes": [4096], "num_slices": 2},
            r"num_slices contradicts slice_sizes \[4096\]: got 2; leave it out, or give 1",
        ),
        (EXPAND | {"add_inputs": 1}, "add_inputs must be true or false: got 1"),
        (EXPAND | {"add_inputs": None}, "add_inputs must be true or false: got None"),
    ],
)
def test_a_table_that_is_no_shape_is_refused_with_what_it_gave(table, message):
    with pytest.raises(ShapeError, match=message):
        KernelShape.from_mapping(table)


@given(shapes())
def test_every_shape_reads_back_what_it_writes(shape):
    assert KernelShape.from_mapping(shape.as_dict()) == shape


@given(shapes(), shapes())
def test_two_shapes_have_one_label_only_where_they_are_one(one, other):
    same = one.op == other.op and one.label == other.label
    assert same == (one == other)


def test_llamas_qkv_is_looked_up_as_vllm_asks_for_it():
    shrink = KernelShape.from_mapping(SHRINK | {"num_slices": 3})
    expand = KernelShape.from_mapping(EXPAND | {"slice_sizes": [4096, 1024, 1024]})

    assert shrink.lookup_key == (9, 3, 16, 4096, 16)
    assert shrink.file_name("NVIDIA H100 80GB HBM3") == "NVIDIA_H100_80GB_HBM3_SHRINK.json"
    assert expand.lookup_key == (9, 3, 16, 16, 4096)
    assert expand.file_name("NVIDIA H100 80GB HBM3") == "NVIDIA_H100_80GB_HBM3_EXPAND_TRUE.json"


def test_a_label_names_what_is_not_at_its_default():
    shape = KernelShape.from_mapping(
        EXPAND
        | {"slice_sizes": [4096, 1024], "active_loras": 2, "dtype": "float16", "add_inputs": False}
    )

    assert shape.label == (
        "m=16,k=16,n=4096,slices=2,max_loras=8,"
        "active_loras=2,sizes=4096+1024,dtype=float16,add_inputs=false"
    )


def test_a_batch_uses_no_more_loras_than_it_has_tokens():
    assert KernelShape.from_mapping(SHRINK | {"num_tokens": 3}).loras_with_tokens == 3
    assert KernelShape.from_mapping(SHRINK | {"num_tokens": 30}).loras_with_tokens == 8


def test_a_moe_op_is_refused_as_long_as_its_shapes_are_not_built():
    with pytest.raises(ShapeError, match="MoE ops are not built yet: got fused_moe_lora_w2_shrink"):
        KernelShape.from_mapping(SHRINK | {"op": "fused_moe_lora_w2_shrink"})
