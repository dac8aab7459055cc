"""Search spaces: what they hold, what each rule throws out, and which launches are one."""

import itertools
import re
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from autotune.errors import SpaceError
from autotune.launch.config import LARGEST_VALUE, KernelConfig
from autotune.launch.op import DENSE_OPS, MOE_DEFAULTS, LoraOp
from autotune.launch.rules import MOST_ACCUMULATORS
from autotune.launch.shape import KernelShape
from autotune.launch.sizes import (
    SMALLEST_BLOCK,
    assigns_naively,
    block_limits,
    is_shrink,
    launched_rows,
    matmul_sizes,
    next_power_of_two,
)
from autotune.launch.space import Grid, SearchSpace, complete_axes, default_axes
from tests.export.examples import EXPAND_CONFIG, SHRINK_CONFIG, qkv_expand, qkv_shrink, shapes

MOE_OPS = tuple(op for op in LoraOp if op.is_moe)

#: What a thread block may use on an H100.
H100_BYTES = 232_448

#: The example space of vLLM's README_TUNING.md, and the values that it leaves out but that win.
README_AXES = {
    "block_m": {16, 32, 64, 128, 256},
    "block_n": {16, 32, 64, 128, 256},
    "block_k": {32, 64, 128, 256},
    "split_k": {1, 2, 4, 8, 16, 32, 64, 128},
    "num_warps": {1, 2, 4, 8, 16},
    "num_stages": {1, 2, 3, 4, 5},
    "num_ctas": {1},
}


def moe(op: LoraOp, **changes: Any) -> KernelShape:
    """A layer like Qwen3-30B-A3B's at max_loras 8, rank 16, 64 tokens."""
    table = {"num_tokens": 64, "hidden_size": 2048, "intermediate_size": 768, "rank": 16}
    layer = {"op": op.value, "num_experts": 128, "top_k": 8, "max_loras": 8}
    return KernelShape.from_mapping(layer | table | changes)


def config(op: LoraOp, **changes: int) -> KernelConfig:
    if op.is_moe:
        return KernelConfig.from_mapping(op, changes)
    usual = SHRINK_CONFIG if op is LoraOp.SHRINK else EXPAND_CONFIG
    return KernelConfig.from_mapping(op, usual | changes)


def grid(shape: KernelShape, axes: dict[str, Any] | None = None, **limits: Any) -> Grid:
    limits = {"shared_memory_bytes": H100_BYTES} | limits
    return Grid(shape=shape, axes=complete_axes(shape.op, axes or {}), **limits)


def space(shape: KernelShape, axes: dict[str, Any] | None = None, **limits: Any) -> SearchSpace:
    return SearchSpace.of_grid(grid(shape, axes, **limits), default=config(shape.op))


# ------------------------------------------------------------------ configurations


def test_a_configuration_takes_vllms_values_for_what_it_may_leave_out():
    table = {key: SHRINK_CONFIG[key] for key in SHRINK_CONFIG if key != "group_size_m"}
    del table["num_ctas"]

    assert KernelConfig.from_mapping(LoraOp.SHRINK, table).as_dict() == SHRINK_CONFIG


@pytest.mark.parametrize(
    ("op", "changes", "message"),
    [
        (LoraOp.EXPAND, {"split_k": 2}, "expand has no parameter 'split_k'; it has block_m, "),
        (LoraOp.SHRINK, {"block_m": 0}, f"block_m must be 1 to {LARGEST_VALUE}: got 0"),
        (LoraOp.SHRINK, {"block_m": 16.0}, "block_m must be 1 to .*: got 16.0"),
        (LoraOp.SHRINK, {"num_warps": True}, "num_warps must be 1 to .*: got True"),
        (LoraOp.SHRINK, {"split_k": None}, "split_k must be 1 to .*: got None"),
        (LoraOp.SHRINK, {"split_k": 2**40}, "split_k must be 1 to .*: got 1099511627776"),
    ],
)
def test_what_is_no_configuration_is_refused_with_the_value(op, changes, message):
    usual: dict[str, Any] = dict(SHRINK_CONFIG if op is LoraOp.SHRINK else EXPAND_CONFIG)
    with pytest.raises(SpaceError, match=message):
        KernelConfig.from_mapping(op, usual | changes)


def test_a_configuration_has_the_parameters_of_its_op_in_the_order_they_are_written():
    assert tuple(config(LoraOp.SHRINK).as_dict()) == LoraOp.SHRINK.parameters
    assert tuple(config(LoraOp.EXPAND).as_dict()) == LoraOp.EXPAND.parameters


# ------------------------------------------------------------------ axes


@pytest.mark.parametrize("op", DENSE_OPS)
def test_the_usual_axes_hold_the_example_space_of_vllms_tuning_guide(op):
    axes = default_axes(op)

    assert tuple(axes) == op.parameters
    for name in set(axes) & set(README_AXES):
        assert README_AXES[name] <= set(axes[name])


def test_the_usual_axes_have_several_tile_orders_and_go_down_to_the_smallest_rank():
    assert 8 in default_axes(LoraOp.SHRINK)["group_size_m"]
    assert len(default_axes(LoraOp.SHRINK)["group_size_m"]) > 1
    assert SMALLEST_BLOCK in default_axes(LoraOp.EXPAND)["block_k"]


def test_an_axis_that_is_given_replaces_the_usual_one():
    axes = complete_axes(LoraOp.SHRINK, {"block_m": [64, 16, 64]})

    assert axes == default_axes(LoraOp.SHRINK) | {"block_m": (16, 64)}


@pytest.mark.parametrize(
    ("given_axes", "message"),
    [
        ({"blok_m": [16]}, "expand has no axis 'blok_m'; it has block_m, "),
        ({"split_k": [1]}, "expand has no axis 'split_k'; it has block_m, "),
        ({"block_m": []}, r"axis block_m must be a list of values: got \[\]"),
        ({"block_m": 16}, "axis block_m must be a list of values: got 16"),
        ({"block_m": "16"}, "axis block_m must be a list of values: got '16'"),
        ({"block_m": [0]}, f"axis block_m takes 1 to {LARGEST_VALUE}: got 0"),
        ({"block_m": [True]}, "axis block_m takes 1 to .*: got True"),
        ({"block_m": ["16"]}, "axis block_m takes 1 to .*: got '16'"),
        ({"block_m": [2**40]}, "axis block_m takes 1 to .*: got 1099511627776"),
    ],
)
def test_an_axis_that_cannot_be_is_refused_with_the_value(given_axes, message):
    with pytest.raises(SpaceError, match=message):
        complete_axes(LoraOp.EXPAND, given_axes)


# ------------------------------------------------------------------ rules


@pytest.mark.parametrize(
    ("changes", "rule", "reason"),
    [
        ({"block_m": 48}, "power_of_two", "block_m must be a power of two of at least 16: got 48"),
        ({"block_k": 8}, "power_of_two", "block_k must be a power of two of at least 16: got 8"),
        ({"num_warps": 3}, "power_of_two", "num_warps must be a power .* at least 1: got 3"),
        ({"block_m": 256}, "block_within_dimension", "block_m 256 is larger than .* 128"),
        ({"block_n": 256}, "block_within_dimension", "block_n 256 is larger than .* 128"),
        ({"block_k": 512, "split_k": 16}, "split_within_depth", "split_k 16 .* k has 8 steps"),
        (
            {"block_m": 128, "block_n": 128, "num_warps": 1},
            "accumulators",
            f"512 float32 accumulators a thread, {MOST_ACCUMULATORS} at most",
        ),
        (
            {"block_m": 128, "block_k": 256, "num_stages": 5},
            "shared_memory",
            "needs at least 294912 bytes of shared memory a block, and 232448 are there",
        ),
        ({"num_warps": 32}, "outside_axes", "num_warps 32 is not searched"),
    ],
)
def test_each_rule_says_its_name_and_why(changes, rule, reason):
    shape = qkv_shrink(num_tokens=128, rank=128)
    wide = {
        "block_m": [16, 48, 128, 256],
        "block_n": [16, 128, 256],
        "block_k": [8, 64, 256, 512],
        "num_warps": [1, 2, 3],
    }

    rejection = space(shape, wide).rejection(config(LoraOp.SHRINK, **changes))

    assert rejection is not None
    assert rejection.rule == rule
    assert re.fullmatch(f"{rule}: {reason}.*", str(rejection))


def test_shared_memory_is_not_counted_where_the_device_is_not_known():
    shape = qkv_shrink(num_tokens=128)
    deep = config(LoraOp.SHRINK, block_m=128, block_k=256, num_stages=5)

    assert space(shape).rejection(deep) is not None
    assert space(shape, shared_memory_bytes=None).rejection(deep) is None


def test_shared_memory_is_counted_for_the_stages_that_the_kernel_forces():
    shape = qkv_expand(num_tokens=128, rank=256)
    deep = config(LoraOp.EXPAND, block_n=256, block_k=256, num_stages=3)

    assert space(shape).rejection(deep) is not None
    assert space(shape, forced={"num_stages": 1}).rejection(deep) is None


def test_an_expand_never_sums_beyond_its_rank():
    assert space(qkv_expand(rank=16)).axes["block_k"] == (16,)
    assert space(qkv_expand(rank=64)).axes["block_k"] == (16, 32, 64)


#: Few values, so that many shapes can be tried; the ends of every axis are among them.
FEW: dict[LoraOp, dict[str, list[int]]] = {
    LoraOp.SHRINK: {
        "block_m": [16, 256],
        "block_n": [16, 128],
        "block_k": [16, 256],
        "split_k": [1, 16],
        "num_warps": [1, 4],
        "num_stages": [1, 5],
    },
    LoraOp.EXPAND: {"num_warps": [1, 4], "num_stages": [1, 5]},
}


@given(shapes(), st.sampled_from([{}, {"num_stages": 1}]))
def test_no_configuration_of_a_space_but_the_default_breaks_a_rule(shape, forced):
    everything = grid(shape, FEW[shape.op], forced=forced)

    for one in space(shape, FEW[shape.op], forced=forced).configs[1:]:
        assert everything.rejection(one) is None
        for value in (one.block_m, one.block_n, one.block_k, one.num_warps):
            assert value == next_power_of_two(value)
        assert one.block_m * one.block_n <= MOST_ACCUMULATORS * 32 * one.num_warps


@given(shapes(), st.sampled_from([{}, {"num_stages": 1}]))
def test_every_launch_is_in_a_space_once_and_every_alias_leads_to_it(shape, forced):
    everything = grid(shape, FEW[shape.op], forced=forced)
    found = space(shape, FEW[shape.op], forced=forced)
    known = set(found.configs)

    assert len({everything.launch(one) for one in known}) == len(found.configs)
    points = [
        KernelConfig(**dict(zip(everything.axes, values, strict=True)))
        for values in itertools.product(*everything.axes.values())
    ]
    allowed = {point for point in points if everything.rejection(point) is None}
    assert {found.canonical(point) for point in allowed} | {found.default} == known


# ------------------------------------------------------------------ aliases and the default


def test_configurations_that_differ_only_in_a_forced_parameter_are_one():
    found = space(qkv_expand(), forced={"num_stages": 1})
    one, other = (config(LoraOp.EXPAND, block_n=64, num_stages=stages) for stages in (2, 3))

    assert found.canonical(one) == found.canonical(other)
    assert found.rejection(other) is None


def test_group_size_m_changes_nothing_with_one_column_of_tiles():
    found = space(qkv_shrink(num_tokens=1024, rank=16))

    assert {one.group_size_m for one in found.configs} == {8}


@pytest.mark.slow
def test_group_size_m_changes_nothing_beyond_the_rows_of_tiles():
    found = space(qkv_shrink(num_tokens=64, rank=64))
    groups = {one.group_size_m for one in found.configs if (one.block_m, one.block_n) == (16, 16)}

    assert groups == {1, 8}  # four rows: 4, 8 and 16 are one, named by vLLM's own value


def test_the_default_is_the_first_configuration_even_where_a_rule_objects():
    default = config(LoraOp.SHRINK, block_k=256, split_k=64)  # vLLM's, for a depth of 16 steps
    found = SearchSpace.of_grid(grid(qkv_shrink()), default=default)

    assert found.configs[0] == found.default == default
    assert found.configs.count(default) == 1
    assert found.rejection(default) is None
    assert 64 in found.axes["split_k"]


def test_the_default_stands_for_its_aliases():
    default = config(LoraOp.EXPAND, num_stages=2)
    found = SearchSpace.of_grid(grid(qkv_expand(), forced={"num_stages": 1}), default=default)

    assert found.canonical(config(LoraOp.EXPAND, num_stages=3)) == default
    assert config(LoraOp.EXPAND, num_stages=1) not in found.configs


def test_the_order_of_a_space_is_always_the_same():
    assert space(qkv_shrink()).configs == space(qkv_shrink()).configs


def test_a_space_without_a_valid_configuration_is_refused():
    with pytest.raises(SpaceError, match=r"no valid configuration for shrink m=16,k=4096.*: widen"):
        space(qkv_shrink(), {"block_m": [48]})


# ------------------------------------------------------------------ what was recorded


def test_the_space_of_a_recording_is_what_was_recorded():
    recorded = [config(LoraOp.SHRINK, num_warps=warps) for warps in (1, 2)]
    found = SearchSpace(qkv_shrink(), recorded, default=recorded[0])
    other = config(LoraOp.SHRINK, num_warps=8)

    assert found.configs == tuple(recorded)
    assert found.axes["num_warps"] == (1, 2)
    assert found.rejection(recorded[1]) is None
    assert str(found.rejection(other)).startswith("not_recorded: ")
    assert found.canonical(other) == other


# ------------------------------------------------------------------ mixtures of experts


@pytest.mark.parametrize("op", MOE_OPS)
def test_a_moe_configuration_has_no_ctas_and_may_leave_out_everything(op):
    assert config(op).num_ctas is None
    assert config(op).as_dict() == MOE_DEFAULTS
    assert KernelConfig.from_mapping(op, config(op).as_dict()) == config(op)


@pytest.mark.parametrize("op", MOE_OPS)
def test_the_usual_moe_axes_hold_vllms_defaults(op):
    axes = default_axes(op)

    assert tuple(axes) == op.parameters
    assert all(value in axes[name] for name, value in MOE_DEFAULTS.items())


def test_only_moe_shrinks_are_split():
    for op in MOE_OPS:
        assert (len(default_axes(op)["split_k"]) > 1) is is_shrink(op)


@pytest.mark.parametrize(
    ("op", "sizes"),
    [
        (LoraOp.W13_SHRINK, (64, 16, 2048)),
        (LoraOp.W13_EXPAND, (64, 768, 16)),
        (LoraOp.W2_SHRINK, (64, 16, 768)),
        (LoraOp.W2_EXPAND, (64, 2048, 16)),
    ],
)
def test_each_moe_op_multiplies_by_the_sizes_of_its_weights(op, sizes):
    assert matmul_sizes(moe(op)) == sizes


@pytest.mark.parametrize(
    ("num_tokens", "fully_sharded", "is_naive"),
    [(16, False, True), (17, False, False), (16, True, False)],
)
def test_few_tokens_among_many_experts_are_not_sorted(num_tokens, fully_sharded, is_naive):
    shape = moe(LoraOp.W2_SHRINK, num_tokens=num_tokens, fully_sharded=fully_sharded)

    assert assigns_naively(shape) is is_naive
    assert block_limits(matmul_sizes(shape))["block_m"] == (
        16 if is_naive else next_power_of_two(num_tokens)
    )


def test_dense_ops_have_their_tokens_as_rows():
    assert not assigns_naively(qkv_shrink())
    assert launched_rows(qkv_shrink(num_tokens=5), 16) == 5


def test_moe_ops_have_rows_for_whatever_experts_the_tokens_may_choose():
    sorted_rows, naive = moe(LoraOp.W2_SHRINK), moe(LoraOp.W2_SHRINK, num_tokens=2)
    few = moe(LoraOp.W2_SHRINK, num_tokens=2, max_loras=1, num_experts=20)

    assert launched_rows(sorted_rows, 16) == 64 * 8 + 128 * 15
    assert launched_rows(naive, 16) == 2 * 8 * 16
    assert launched_rows(few, 32) == 2 * 8 * 32  # fewer rows than experts: a block for each


@pytest.mark.parametrize(
    ("op", "split_k", "steps"), [(LoraOp.W13_SHRINK, 128, 64), (LoraOp.W2_SHRINK, 64, 24)]
)
def test_a_moe_shrink_is_split_within_the_depth_of_its_own_weights(op, split_k, steps):
    rejection = space(moe(op), {"split_k": [1, split_k]}).rejection(
        config(op, block_n=16, block_k=32, split_k=split_k)
    )

    assert str(rejection).startswith("split_within_depth: ")
    assert str(rejection).endswith(f"k has {steps} steps")


def test_group_size_m_of_a_moe_op_changes_nothing_with_one_column_of_tiles():
    shrink, expand = space(moe(LoraOp.W13_SHRINK)), space(moe(LoraOp.W13_EXPAND), {"block_k": [16]})

    assert {one.group_size_m for one in shrink.configs} == {8}
    assert {one.group_size_m for one in expand.configs} == {1, 4, 8, 16}


def test_a_moe_expand_launches_alike_with_and_without_split_k():
    shape = moe(LoraOp.W2_EXPAND)
    found = space(shape, {"split_k": [1, 4], "block_k": [16]}, forced={"split_k": 1})
    told = config(shape.op, block_k=16, split_k=4)

    assert found.canonical(told) == config(shape.op, block_k=16)


@pytest.mark.parametrize("op", MOE_OPS)
@pytest.mark.parametrize("num_tokens", [1, 64, 4096])
def test_no_configuration_of_a_moe_space_but_the_default_breaks_a_rule(op, num_tokens):
    shape, few = moe(op, num_tokens=num_tokens), {"num_stages": [2], "num_warps": [4]}
    everything = grid(shape, few)
    found = space(shape, few)

    assert len(found.configs) > 10
    assert all(everything.rejection(one) is None for one in found.configs[1:])
    assert len({everything.launch(one) for one in found.configs}) == len(found.configs)
