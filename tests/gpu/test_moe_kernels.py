"""The MoE kernels of each provider on a real GPU."""

from __future__ import annotations

import json
from typing import Any

import pytest
import torch

from autotune.launch.config import KernelConfig
from autotune.launch.op import LoraOp
from autotune.launch.shape import KernelShape
from autotune.launch.sizes import assigns_naively
from autotune.measure.kernels import KernelProvider, provider
from autotune.measure.kernels.defaults import default_config
from autotune.measure.kernels.inputs import make_inputs
from autotune.measure.kernels.reference import Check, check_result, error_bound, expect
from autotune.measure.kernels.vllm import VllmProvider
from autotune.measure.kernels.vllm_parts import part
from tests.gpu.test_kernels import (
    COMPILE,
    LAUNCH,
    cached_kernels,
    each_dtype,
    run_script,
    target_facts,
    with_idle_tokens,
)

pytestmark = pytest.mark.gpu

OPS = tuple(op for op in LoraOp if op.is_moe)

#: Sizes of a layer where a case gives no others.
USUAL = {"num_experts": 16, "top_k": 2, "max_loras": 3, "hidden_size": 1024}

#: Per case: sizes of the layer, and changes to vLLM's default configuration.
LAYERS: dict[str, tuple[dict[str, Any], dict[str, int]]] = {
    "one token": ({"num_tokens": 1, "rank": 16}, {}),
    "one token, many experts": ({"num_tokens": 1, "num_experts": 64, "top_k": 8}, {"block_m": 16}),
    "decode": ({"num_tokens": 16, "num_experts": 128, "top_k": 8}, {"block_m": 16}),
    "naive decode": ({"num_tokens": 8, "num_experts": 64, "max_loras": 4}, {"block_m": 16}),
    "fully sharded": ({"num_tokens": 1, "num_experts": 64, "fully_sharded": True}, {}),
    "prefill": ({"num_tokens": 1000, "num_experts": 8, "rank": 64}, {}),
    "Zipf": ({"num_tokens": 500, "num_experts": 32, "routing": "zipf"}, {"block_m": 32}),
    "two experts of many": ({"num_tokens": 200, "num_experts": 64, "routing": "hit=2"}, {}),
    "rank 8": ({"num_tokens": 50, "rank": 8}, {"block_m": 16, "block_n": 16}),
    "rank 128": ({"num_tokens": 50, "rank": 128}, {"block_k": 64, "block_n": 128}),
    "rank 256": ({"num_tokens": 50, "rank": 256}, {"block_k": 128, "num_stages": 2}),
    "naive rank 256": ({"num_tokens": 2, "num_experts": 64, "rank": 256}, {"block_m": 16}),
    "odd sizes": ({"num_tokens": 33, "hidden_size": 1001, "intermediate_size": 333}, {}),
    "large blocks": ({"num_tokens": 600, "num_experts": 4}, {"block_m": 128, "num_warps": 8}),
    "many stages": ({"num_tokens": 64, "rank": 256}, {"block_m": 16, "num_stages": 5}),
    "no grouping": ({"num_tokens": 300, "rank": 64}, {"group_size_m": 1, "block_n": 16}),
}

each_op = pytest.mark.parametrize("op", OPS, ids=lambda op: op.value)
each_layer = pytest.mark.parametrize("name", LAYERS)


def shape_of(op: LoraOp, name: str = "prefill", **changes: Any) -> KernelShape:
    table = {"op": op.value, "rank": 32, "intermediate_size": 384, **USUAL, **LAYERS[name][0]}
    return KernelShape.from_mapping(table | changes)


def config_of(shape: KernelShape, changes: dict[str, int]) -> KernelConfig:
    return KernelConfig.from_mapping(shape.op, default_config(shape).as_dict() | changes)


def check(
    shape: KernelShape,
    config: KernelConfig,
    mapping: torch.Tensor | None = None,
    *,
    by: KernelProvider | None = None,
) -> Check:
    """Launch twice, the second time with the other weight set; the builtin kernels by default."""
    by = by or provider("builtin")
    inputs = make_inputs(
        shape,
        device="cuda",
        weight_sets=2,
        seed=11,
        token_lora_mapping=mapping,
        pair=by.runs_pair(shape),
    )
    expected = expect(inputs, weight_set=1)
    by.launch(inputs, config, 0)

    def launch() -> None:
        by.launch(inputs, config, 1)
        by.collect(inputs, config)

    return check_result(launch, inputs, expected)


@each_dtype
@each_layer
@each_op
def test_every_op_of_a_layer_is_right(op, name, dtype, kernels):
    shape = shape_of(op, name, dtype=dtype)
    config = config_of(shape, LAYERS[name][1])

    assert check(shape, config, by=kernels).problem == ""
    assert check(shape, config, with_idle_tokens(shape), by=kernels).problem == ""


@pytest.mark.parametrize("op", [LoraOp.W13_SHRINK, LoraOp.W2_SHRINK])
@pytest.mark.parametrize("name", ["rank 256", "naive rank 256", "rank 128", "one token"])
def test_vllms_shrink_and_expand_are_right_one_after_the_other(op, name, kernels):
    if not isinstance(kernels, VllmProvider):
        pytest.skip("only for vLLM's kernels")
    shape, changes = shape_of(op, name), {"block_m": 32}
    inputs = make_inputs(shape, device="cuda", weight_sets=1, seed=11, pair=True)
    shrink = config_of(shape, changes)
    expand = config_of(shape, changes | {"block_n": 128, "num_warps": 8})
    check = check_result(
        lambda: kernels.launch_pair(inputs, shrink, expand, 0), inputs, expect(inputs)
    )
    assert check.problem == ""


def test_vllm_uses_the_features_of_a_hopper_gpu(kernels):
    if not isinstance(kernels, VllmProvider) or torch.cuda.get_device_capability() != (9, 0):
        pytest.skip("only for vLLM's kernels on a Hopper GPU")
    utils = part("utils")

    assert utils.supports_tma(torch.device("cuda"))
    assert utils.supports_pdl(torch.device("cuda"))


@each_layer
def test_only_cases_with_few_rows_assign_blocks_naively(name):
    assert assigns_naively(shape_of(LoraOp.W2_SHRINK, name)) == (
        name in {"one token, many experts", "naive decode", "naive rank 256", "one token"}
    )


@each_dtype
@pytest.mark.parametrize("split_k", [2, 16])
@pytest.mark.parametrize("op", [LoraOp.W13_SHRINK, LoraOp.W2_SHRINK])
def test_the_parts_of_a_split_are_added_up(op, split_k, dtype):
    shape = shape_of(op, dtype=dtype, intermediate_size=1024)

    assert check(shape, config_of(shape, {"split_k": split_k})).problem == ""


@pytest.mark.parametrize("op", [LoraOp.W13_SHRINK, LoraOp.W13_EXPAND])
def test_w13_may_be_one_slice(op):
    shape = shape_of(op, num_slices=1)

    assert check(shape, default_config(shape)).problem == ""


@each_dtype
@each_op
def test_the_error_of_a_right_kernel_lies_well_below_its_bound(op, dtype):
    shape = shape_of(op, dtype=dtype)

    error = check(shape, default_config(shape)).relative_error

    assert 0 < error < error_bound(shape) / 3


def test_addresses_beyond_32_bits_are_right():
    """5.4 GB of weights in one slice, and tokens of the last adapter."""
    sizes: dict[str, Any] = {"num_experts": 128, "rank": 256, "hidden_size": 8192, "max_loras": 10}
    shape = shape_of(LoraOp.W13_SHRINK, num_tokens=64, num_slices=1, **sizes)
    inputs = make_inputs(
        shape,
        device="cuda",
        weight_sets=1,
        seed=0,
        token_lora_mapping=torch.full((64,), 9),
    )
    config, kernels = default_config(shape), provider("builtin")

    assert inputs.weight_sets[0][0].numel() // 10 * 9 > 2**31
    check = check_result(lambda: kernels.launch(inputs, config, 0), inputs, expect(inputs))
    assert check.problem == ""


@each_op
@pytest.mark.parametrize("name", ["decode", "naive decode"])
@pytest.mark.parametrize("rank", [32, 256])
def test_launches_captured_in_a_graph_replay_right(op, name, rank, kernels):
    shape = shape_of(op, name, rank=rank)
    config = default_config(shape)
    inputs = make_inputs(shape, device="cuda", weight_sets=1, seed=0, pair=kernels.runs_pair(shape))
    kernels.launch(inputs, config, 0)  # loads the kernel and aligns, which a capture cannot
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        kernels.launch(inputs, config, 0)

    def replay() -> None:
        graph.replay()
        kernels.collect(inputs, config)

    assert check_result(replay, inputs, expect(inputs)).problem == ""


def test_a_launch_finds_what_a_process_without_a_gpu_has_compiled(tmp_path, kernels):
    cases = ("prefill", "naive decode", "rank 256", "naive rank 256")
    shapes = [shape_of(op, name) for op in OPS for name in cases]
    message = json.dumps(
        (
            kernels.name,
            [(shape.as_dict(), default_config(shape).as_dict()) for shape in shapes],
            target_facts(),
        )
    )

    run_script(COMPILE, message, tmp_path, CUDA_VISIBLE_DEVICES="")
    compiled = cached_kernels(tmp_path)
    run_script(LAUNCH, message, tmp_path)

    # Shapes of a pair share a kernel, and so do builtin ones that differ only in sizes.
    assert compiled
    assert cached_kernels(tmp_path) == compiled
