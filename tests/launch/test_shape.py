"""Kernel shapes: what a table may leave out, what is refused, and what vLLM looks up."""

import pytest
from hypothesis import given

from autotune.errors import ShapeError
from autotune.launch.op import MOE_OPS, LoraOp
from autotune.launch.shape import KernelShape
from tests.export.examples import shapes
from tests.moe import moe_shape, sets_of_studies

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


def test_slice_sizes_may_stand_beside_a_hidden_size_and_num_slices_that_agree():
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
def test_different_shapes_have_different_labels(one, other):
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


# ------------------------------------------------------------------ MoE


def test_w13_has_two_slices_and_w2_one_where_nothing_is_said():
    slices = {op: moe_shape(op).num_slices for op in MOE_OPS}
    assert list(slices.values()) == [2, 2, 1, 1]
    shape = moe_shape(LoraOp.W2_SHRINK)
    assert (shape.routing, shape.fully_sharded, shape.slice_sizes) == ("uniform", False, ())


def test_all_four_ops_are_looked_up_under_the_rank_and_the_models_hidden_size():
    assert [moe_shape(op, max_loras=4).lookup_key for op in MOE_OPS] == [
        (4, 2, 16, 256, 2048, 768),
        (4, 2, 16, 256, 2048, 768),
        (4, 1, 16, 256, 2048, 768),
        (4, 1, 16, 256, 2048, 768),
    ]


def test_a_moe_label_names_the_experts_and_what_is_not_at_its_default():
    plain = moe_shape(LoraOp.W13_SHRINK)
    assert plain.label == "m=16,k=256,n=2048,slices=2,max_loras=8,i=768,experts=128,top_k=8"
    unusual = moe_shape(LoraOp.W13_SHRINK, routing="hit=8", fully_sharded=True)
    assert unusual.label == plain.label + ",routing=hit=8,fully_sharded"


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"num_experts": 0}, "num_experts must be 1 or more: got 0"),
        ({"top_k": "8"}, "top_k must be a whole number: got '8'"),
        ({"top_k": 129}, "top_k cannot exceed num_experts: got 129 of 128"),
        ({"intermediate_size": None}, "intermediate_size must be a whole number: got nothing"),
        ({"num_slices": 3}, "fused_moe_lora_w13_shrink has at most 2 slices: got 3"),
        ({"routing": "even"}, "routing must be uniform, zipf or hit=N: got 'even'"),
        ({"routing": 3}, "routing must be uniform, zipf or hit=N: got 3"),
        ({"routing": "hit=7"}, r"routing must hit 8 \(top_k\) to 128 .* experts: got 'hit=7'"),
        ({"routing": "hit=129"}, "experts: got 'hit=129'"),
        ({"fully_sharded": "no"}, "fully_sharded must be true or false: got 'no'"),
        ({"slice_sizes": [768]}, "takes num_slices, not slice_sizes"),
    ],
)
def test_a_table_that_is_no_moe_shape_is_refused_with_what_it_gave(changes, message):
    with pytest.raises(ShapeError, match=message):
        moe_shape(LoraOp.W13_SHRINK, **changes)


def test_w2_has_one_slice():
    with pytest.raises(ShapeError, match="w2_shrink has at most 1 slices: got 2"):
        moe_shape(LoraOp.W2_SHRINK, num_slices=2)


@pytest.mark.parametrize(
    ("field", "value"), [("num_experts", 8), ("routing", "uniform"), ("fully_sharded", False)]
)
def test_a_dense_op_has_none_of_a_moe_ops_fields(field, value):
    with pytest.raises(ShapeError, match=f"shrink has no {field}, only MoE ops do: got {value!r}"):
        KernelShape.from_mapping(SHRINK | {field: value})


@given(sets_of_studies(whole=False))
def test_every_moe_shape_reads_back_what_it_writes(selections):
    for one in selections:
        assert KernelShape.from_mapping(one.shape.as_dict()) == one.shape


# ------------------------------------------------------------------ several GPUs


@pytest.mark.parametrize("rank", [1, 2, 4, 5, 80])
def test_a_shrink_may_have_a_part_of_a_rank_that_fully_sharded_loras_divide(rank):
    assert KernelShape.from_mapping(SHRINK | {"rank": rank}).rank == rank
    if rank > 1:
        with pytest.raises(ShapeError, match=f"got {rank}; use 1, 8"):
            KernelShape.from_mapping(EXPAND | {"rank": rank})


def test_the_servers_rank_is_w13s_part_times_the_number_of_gpus():
    sharded = {"fully_sharded": True, "shards": 4, "hidden_size": 2048}
    w13 = moe_shape(LoraOp.W13_EXPAND, **sharded, rank=4)
    w2 = moe_shape(LoraOp.W2_EXPAND, **sharded, rank=16)

    assert w13.server_rank == w2.server_rank == 16
    assert (w13.lookup_key.k, w13.lookup_key.n) == (4, 2048)
    assert (w2.lookup_key.k, w2.lookup_key.n) == (16, 2048)
    assert w2.written_size == 512


def test_a_shape_on_one_gpu_writes_no_field_of_parallelism():
    shape = moe_shape(LoraOp.W2_SHRINK)

    assert not {"shards", "global_experts"} & set(shape.as_dict())
    assert "shards" not in shape.label


@pytest.mark.parametrize(
    "changes",
    [{"fully_sharded": True, "shards": 2, "rank": 8}, {"num_experts": 4, "global_experts": 128}],
)
def test_a_layer_that_gpus_share_reads_back_what_it_writes(changes):
    shape = moe_shape(LoraOp.W13_SHRINK, **changes)

    assert KernelShape.from_mapping(shape.as_dict()) == shape
    assert shape.label != moe_shape(LoraOp.W13_SHRINK).label


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"shards": 2}, "shards need fully_sharded = true: got 2 without"),
        ({"shards": 0}, "shards must be 1 or more: got 0"),
        ({"fully_sharded": True, "shards": 3, "rank": 8}, "rank is not one that .*: got 8"),
        ({"fully_sharded": True, "shards": 64, "rank": 8, "hidden_size": 2040}, "divide hidden_si"),
        ({"global_experts": 4}, "global_experts cannot be fewer than num_experts: got 4 for 128"),
        ({"global_experts": 256, "fully_sharded": True}, "no fully-sharded LoRAs with expert par"),
        ({"global_experts": 256, "top_k": 257}, "top_k cannot exceed num_experts: got 257 of 256"),
    ],
)
def test_an_impossible_way_to_share_a_layer_is_refused(changes, message):
    with pytest.raises(ShapeError, match=message):
        moe_shape(LoraOp.W13_SHRINK, **changes)
