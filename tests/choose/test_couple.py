"""From the selections of a MoE layer's ops to the one ``block_m`` that they share."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
from hypothesis import given

from autotune.choose.couple import couple, couple_layer
from autotune.choose.selection import SAME, Ratio, Selection
from autotune.errors import ExportError
from autotune.launch.moe_layer import MoeLayer, by_layer
from autotune.launch.op import MOE_OPS, LoraOp
from tests.export.examples import qkv_shrink, selection
from tests.moe import layer_selections, moe_config, moe_selection, moe_shape, sets_of_studies

W13_SHRINK, W13_EXPAND, W2_SHRINK, W2_EXPAND = MOE_OPS

#: Each op is best at another block_m than all of them together.
UNLIKE = {
    W13_SHRINK: {16: 5.0, 32: 6.0, 128: 9.0},
    W13_EXPAND: {16: 9.0, 32: 6.0, 128: 5.0},
    W2_SHRINK: {16: 9.0, 32: 6.0, 128: 9.0},
    W2_EXPAND: {16: 5.5, 32: 6.0, 128: 9.0},
}


def test_the_block_m_with_the_smallest_sum_is_chosen_whatever_each_op_likes_best():
    coupled = couple(layer_selections(UNLIKE))

    assert [one.config for one in coupled] == [moe_config(block_m=32, num_warps=8)] * 4
    for one in coupled:
        assert one.ratio is not None
        assert one.ratio.value == pytest.approx(20 / 6)
        assert one.layer is not None
        assert (one.layer.block_m, one.layer.ops) == (32, MOE_OPS)
        assert one.layer.ratio is not None
        assert one.layer.ratio.value == pytest.approx(20 / 6)


def test_an_op_may_be_slower_than_its_default_where_the_layer_gains():
    latencies = {op: {32: 10.0} for op in MOE_OPS} | {W2_EXPAND: {32: 22.0}}
    *_, slower = couple(layer_selections(latencies))

    assert slower.config.block_m == 32
    assert slower.ratio is not None
    assert slower.ratio.verdict == "slower"
    assert slower.layer is not None
    assert slower.layer.ratio is not None
    assert slower.layer.ratio.verdict == "faster"


def test_the_defaults_block_m_wins_within_the_noise():
    latencies = {op: {32: 19.99} for op in MOE_OPS}
    selections = layer_selections(latencies)
    noisy = [
        replace(
            one,
            samples_us={
                config: tuple(us * (0.98 + 0.04 * ((i * 7 + k * 3) % 5) / 4) for i in range(15))
                for k, (config, (us, *_)) in enumerate(one.samples_us.items())
            },
        )
        for one in selections
    ]
    coupled = couple(noisy)

    assert {one.config for one in coupled} == {moe_config()}
    assert all(one.ratio == SAME and one.layer and one.layer.ratio == SAME for one in coupled)


def test_at_the_defaults_block_m_each_op_still_gets_its_best():
    latencies = {op: {64: 10.0, 32: 30.0} for op in MOE_OPS} | {W2_EXPAND: {64: 25.0}}
    coupled = couple(layer_selections(latencies))

    best = moe_config(num_warps=8)
    assert [one.config for one in coupled] == [best, best, best, moe_config()]


def test_a_block_m_that_one_op_does_not_run_at_is_not_chosen():
    latencies = {**UNLIKE, W2_SHRINK: {16: 9.0, 128: 9.0}}
    assert {one.config.block_m for one in couple(layer_selections(latencies))} == {16}


def test_ops_that_are_not_all_there_get_the_block_m_that_vllm_takes_for_the_others():
    coupled = couple(layer_selections({op: UNLIKE[op] for op in (W13_SHRINK, W13_EXPAND)}))

    assert {one.config for one in coupled} == {moe_config()}
    assert all(one.layer and one.layer.ops == (W13_SHRINK, W13_EXPAND) for one in coupled)


def test_ops_without_a_common_block_m_are_an_error_that_says_what_each_runs_at():
    selections = [
        moe_selection(moe_shape(op), {16 if op is W2_EXPAND else 32: 5.0}, default_us=None)
        for op in MOE_OPS
    ]
    with pytest.raises(
        ExportError, match=r"m=16,rank=256,.* share one block_m.*w2_shrink with 32; w2_expand with"
    ):
        couple(selections)


def test_a_layer_whose_default_does_not_run_has_no_ratio():
    one, *_ = couple([moe_selection(moe_shape(o), {32: 5.0}, default_us=None) for o in MOE_OPS])

    assert one.config.block_m == 32
    assert one.ratio is None
    assert one.layer is not None
    assert one.layer.ratio is None


def test_dense_ops_and_other_layers_are_left_as_they_are():
    dense = selection(qkv_shrink())
    coupled = couple([dense, *layer_selections(UNLIKE), *layer_selections(UNLIKE, num_tokens=64)])

    assert coupled[0] is dense
    assert [one.shape.num_tokens for one in coupled[1:]] == [16] * 4 + [64] * 4


def test_only_the_block_m_that_are_allowed_are_chosen_from():
    coupled = couple_layer(layer_selections(UNLIKE), allowed={128: "a file's", 64: "a file's"})
    assert {one.config.block_m for one in coupled} == {128}


@pytest.mark.slow
@given(sets_of_studies(whole=False))
def test_every_layer_ends_with_one_block_m_and_choosing_again_changes_nothing(selections):
    coupled = couple(selections)

    for those in by_layer(coupled, lambda one: one.shape).values():
        assert len({one.config.block_m for one in those}) == 1
    assert couple(coupled) == coupled
    assert [one.shape for one in coupled] == [one.shape for one in selections]


@pytest.mark.slow
@given(sets_of_studies(whole=True))
def test_a_whole_layer_is_never_slower_than_its_defaults(selections):
    for one in couple(selections):
        assert one.layer is not None
        assert one.layer.ratio is not None
        assert one.layer.ratio.value >= 0.999


@pytest.mark.slow
@given(sets_of_studies(whole=True))
def test_the_order_of_the_studies_does_not_matter(selections):
    there = {one.shape: one for one in couple(selections)}
    assert {one.shape: one for one in couple(selections[::-1])} == there


def test_a_coupled_selection_reads_back_what_it_writes():
    for one in couple(layer_selections(UNLIKE)):
        assert Selection.from_json(json.dumps(one.as_dict())) == one


def test_the_ratio_of_sums_weighs_each_op_by_its_time():
    def around(us: float) -> list[float]:
        return [us * (1 + 0.01 * (i % 3)) for i in range(30)]

    ratio = Ratio.of_sums([(around(10), around(5)), (around(90), around(95))])
    assert ratio.low <= ratio.value <= ratio.high
    assert ratio.value == pytest.approx(1.0, abs=0.01)
    assert ratio.verdict == "same"


def test_w13_of_a_model_that_fuses_gate_and_up_is_of_the_layer_of_its_w2():
    w13, w2 = moe_shape(LoraOp.W13_SHRINK, fused=True), moe_shape(LoraOp.W2_SHRINK, fused=True)

    assert (w13.num_slices, w13.intermediate_size, w2.intermediate_size) == (1, 1536, 768)
    assert MoeLayer.of(w13) == MoeLayer.of(w2)


@pytest.mark.parametrize(
    "change",
    [{"num_tokens": 32}, {"rank": 16}, {"top_k": 4}, {"routing": "zipf"}, {"fully_sharded": True}],
)
def test_what_changes_the_sorting_of_tokens_makes_another_layer(change):
    assert MoeLayer.of(moe_shape(W2_SHRINK)) != MoeLayer.of(moe_shape(W2_SHRINK, **change))


def test_the_ops_of_a_fully_sharded_layer_are_one_layer_though_w13_has_a_part_of_the_rank():
    sharded = {"fully_sharded": True, "shards": 4}
    latencies = {16: 5.0, 32: 4.0}
    those = [
        moe_selection(
            moe_shape(op, **sharded, rank=64 if op in (W13_SHRINK, W13_EXPAND) else 256), latencies
        )
        for op in MOE_OPS
    ]

    (layer,) = by_layer(those, lambda one: one.shape)
    assert layer.rank == 256
    assert {one.layer.ops for one in couple(those) if one.layer} == {MOE_OPS}
