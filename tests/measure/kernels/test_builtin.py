"""The builtin provider: what it forces, and compiling ahead without a GPU."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from triton.backends.compiler import GPUTarget
from triton.compiler.compiler import make_backend
from triton.runtime.jit import JITFunction, create_function_from_signature

from autotune.errors import InputError
from autotune.launch.op import LoraOp
from autotune.launch.rules import as_launched
from autotune.measure.kernels import expand, fused_moe, provider, shrink
from autotune.measure.kernels.builtin import BuiltinProvider
from autotune.measure.kernels.inputs import make_inputs, operands_without_tensors
from autotune.measure.kernels.moe_inputs import moe_operands_without_tensors
from tests.measure.kernels.cases import (
    A100,
    H100,
    MOE_OPS,
    expand_shape,
    make_config,
    moe_shape,
    naive_changes,
    shrink_shape,
)
from tests.patience import PATIENCE_S

ROOT = Path(__file__).parents[3]

HOPPER = H100.capability

#: Compiles each op twice for two targets, and expand on Hopper with two depths of pipeline.
COMPILE = """
import json
from autotune.measure.kernels import provider
from tests.measure.kernels.cases import A100, H100, expand_shape, make_config, shrink_shape

kernels, answers = provider("builtin"), []
for shape in (
    shrink_shape(num_tokens=16, hidden_size=4096, rank=16, num_slices=3, dtype="bfloat16"),
    shrink_shape(num_tokens=200, hidden_size=4100, rank=16),
    expand_shape(num_tokens=16, slice_sizes=[4096, 1024, 1024], rank=16, dtype="bfloat16"),
    expand_shape(num_tokens=17, slice_sizes=[1001], rank=8, add_inputs=False),
):
    for target in (A100, H100):
        for num_stages in (2, 3):
            config = make_config(shape.op, block_k=32, num_stages=num_stages)
            compiled = kernels.compile(shape, config, target)
            answers.append([
                shape.op.value, target.capability[0], compiled.shared_memory_bytes,
                compiled.registers, compiled.spills,
            ])
print(json.dumps(answers))
"""

#: Compiles every MoE op for two targets, sorted and naive, and the default for a rank of 8.
COMPILE_MOE = """
import json
from autotune.measure.kernels import provider
from tests.measure.kernels.cases import A100, H100, MOE_OPS, make_config, moe_shape, naive_changes

kernels, answers = provider("builtin"), []
for op in MOE_OPS:
    for changes in ({"hidden_size": 2048, "dtype": "bfloat16"}, naive_changes()):
        shape = moe_shape(op, **changes)
        naive = shape.num_tokens == 1
        config = kernels.default(shape) if naive else make_config(op, split_k=2)
        for target in (A100, H100):
            compiled = kernels.compile(shape, config, target)
            answers.append([
                op.value, target.capability[0], compiled.shared_memory_bytes,
                compiled.registers, compiled.spills,
            ])
print(json.dumps(answers))
"""


def specialisation(kernel: Any, arguments: dict[str, Any]) -> tuple[Any, Any]:
    """What Triton's cache key is made of: types, constants, alignments and options."""
    changing = fused_moe.CHANGING if kernel is fused_moe.fused_moe_kernel else ()
    function = JITFunction(kernel.fn, do_not_specialize=changing)
    backend = make_backend(GPUTarget("cuda", 90, 32))
    bind = create_function_from_signature(function.signature, function.params, backend)
    _, specialised, options = bind(**arguments)
    return specialised, options


@pytest.mark.parametrize("num_tokens", [1, 16, 17])
@pytest.mark.parametrize("hidden_size", [64, 70, 33])
@pytest.mark.parametrize("num_slices", [1, 3])
def test_shrink_is_specialised_alike_with_tensors_and_without(num_tokens, hidden_size, num_slices):
    shape = shrink_shape(num_tokens=num_tokens, hidden_size=hidden_size, num_slices=num_slices)
    inputs = make_inputs(shape, device="cpu", weight_sets=1, seed=0, scaling=0.3)
    config = make_config(LoraOp.SHRINK, split_k=4)

    with_tensors = shrink.arguments(shape, config, inputs.operands[0], HOPPER, inputs.scaling)
    without = shrink.arguments(shape, config, operands_without_tensors(shape), HOPPER, 1.0)

    assert specialisation(shrink.shrink_kernel, with_tensors) == specialisation(
        shrink.shrink_kernel, without
    )


@pytest.mark.parametrize("num_tokens", [1, 16, 17])
@pytest.mark.parametrize("slice_sizes", [[64], [33], [64, 64, 64], [64, 33, 1]])
@pytest.mark.parametrize("rank", [1, 16])
def test_expand_is_specialised_alike_with_tensors_and_without(num_tokens, slice_sizes, rank):
    shape = expand_shape(num_tokens=num_tokens, slice_sizes=slice_sizes, rank=rank)
    inputs = make_inputs(shape, device="cpu", weight_sets=1, seed=0)
    config = make_config(LoraOp.EXPAND)

    with_tensors = expand.arguments(shape, config, inputs.operands[0], HOPPER)
    without = expand.arguments(shape, config, operands_without_tensors(shape), HOPPER)

    assert specialisation(expand.expand_kernel, with_tensors) == specialisation(
        expand.expand_kernel, without
    )


@pytest.mark.parametrize("op", MOE_OPS, ids=lambda op: op.value)
@pytest.mark.parametrize("changes", [{}, naive_changes(), {"hidden_size": 64, "rank": 1}])
def test_moe_ops_are_specialised_alike_with_tensors_and_without(op, changes):
    shape = moe_shape(op, **changes)
    moe = make_inputs(shape, device="cpu", weight_sets=1, seed=0).moe
    config = make_config(op, block_m=32)

    assert moe is not None
    with_tensors = fused_moe.arguments(shape, config, moe.operands[0], moe.alignment(32))
    without = fused_moe.arguments(shape, config, *moe_operands_without_tensors(shape))

    assert specialisation(fused_moe.fused_moe_kernel, with_tensors) == specialisation(
        fused_moe.fused_moe_kernel, without
    )


def test_a_moe_kernel_is_the_same_for_batches_of_any_size():
    """As in vLLM, the compiler does not see what changes with the batch."""
    keys = []
    for num_tokens in (24, 25, 160):
        shape = moe_shape(LoraOp.W13_EXPAND, num_tokens=num_tokens)
        arguments = fused_moe.arguments(
            shape, make_config(shape.op), *moe_operands_without_tensors(shape)
        )
        keys.append(specialisation(fused_moe.fused_moe_kernel, arguments))

    assert keys.count(keys[0]) == 3


@pytest.mark.parametrize("op", MOE_OPS, ids=lambda op: op.value)
def test_the_numbers_in_a_moe_ops_arguments_are_the_strides_of_its_tensors(op):
    inputs = make_inputs(moe_shape(op), device="cpu", weight_sets=1, seed=0)
    assert inputs.moe is not None
    alignment = inputs.moe.alignment(32)
    assert alignment.sorted_token_ids is not None

    arguments = fused_moe.arguments(
        inputs.shape, make_config(op, block_m=32), inputs.moe.operands[0], alignment
    )

    assert inputs.x.stride()[-2:] == (arguments["x_stride_m"], arguments["x_stride_k"])
    assert inputs.out.stride()[-2:] == (arguments["out_stride_m"], arguments["out_stride_n"])
    names = ("lora", "expert", "n", "k")
    strides = tuple(arguments[f"weights_stride_{name}"] for name in names)
    assert strides == inputs.weight_sets[0][0].stride()
    assert arguments["sorted_stride_lora"] == alignment.sorted_token_ids.stride(0)
    assert arguments["experts_stride_lora"] == alignment.expert_ids.stride(0)
    if inputs.x.ndim == 3:
        assert arguments["x_stride_slice"] == inputs.x.stride(0)
    else:
        assert arguments["out_stride_slice"] == inputs.out.stride(0)


@pytest.mark.parametrize("make_shape", [shrink_shape, expand_shape])
def test_the_numbers_in_the_arguments_are_the_strides_of_the_tensors(make_shape):
    shape = make_shape(num_tokens=5)
    inputs = make_inputs(shape, device="cpu", weight_sets=1, seed=0)
    config, operands = make_config(shape.op), inputs.operands[0]

    if shape.op is LoraOp.SHRINK:
        arguments = shrink.arguments(shape, config, operands, HOPPER, 1.0)
        names = {"x": "mk", "out": ("slice", *"mn"), "weights": ("lora", *"nk")}
    else:
        arguments = expand.arguments(shape, config, operands, HOPPER)
        names = {"x": ("slice", *"mk"), "out": "mn", "weights": ("lora", *"nk")}

    for name, dimensions in names.items():
        strides = tuple(arguments[f"{name}_stride_{each}"] for each in dimensions)
        assert strides == arguments[name].stride()


def test_a_different_configuration_is_a_different_specialisation():
    shape = shrink_shape()
    operands = operands_without_tensors(shape)

    keys = [
        specialisation(
            shrink.shrink_kernel,
            shrink.arguments(shape, make_config(LoraOp.SHRINK, **change), operands, HOPPER, 1.0),
        )
        for change in ({}, {"block_k": 32}, {"num_warps": 8}, {"num_stages": 3})
    ]

    assert all(keys.count(key) == 1 for key in keys)


def test_expand_is_forced_to_one_stage_on_hopper_alone():
    kernels = BuiltinProvider()

    assert kernels.forced(expand_shape(), H100) == {"num_stages": 1}
    assert kernels.forced(expand_shape(), A100) == {}
    assert kernels.forced(expand_shape(), replace(H100, capability=(10, 0))) == {}
    assert kernels.forced(shrink_shape(), H100) == {}


def test_configurations_that_hopper_makes_alike_are_aliases_in_the_space():
    shape = expand_shape()
    forced = BuiltinProvider().forced(shape, H100)

    launched = {
        as_launched(shape, make_config(LoraOp.EXPAND, num_stages=stages), forced)
        for stages in (1, 2, 5)
    }

    assert len(launched) == 1


def test_the_builtin_provider_is_found_by_name():
    kernels = provider("builtin")

    assert kernels.name == "builtin"
    assert kernels.version == "1"


def test_an_unknown_provider_is_refused_with_the_choices():
    with pytest.raises(InputError, match="unknown kernel provider: got 'cutlass'; use builtin"):
        provider("cutlass")


def run_without_a_gpu(script: str, cache: Path) -> Any:
    """The answer of a script that compiles in a process of its own."""
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    environment |= {"TRITON_CACHE_DIR": str(cache), "CUDA_VISIBLE_DEVICES": ""}
    run = subprocess.run(  # noqa: S603 - one of the scripts above
        [sys.executable, "-c", script],
        cwd=ROOT,
        env=environment,
        capture_output=True,
        text=True,
        timeout=PATIENCE_S,
        check=False,
    )
    assert run.returncode == 0, run.stderr
    return json.loads(run.stdout)


@pytest.fixture(scope="module")
def compiled(tmp_path_factory):
    """The answer of compiling without a GPU, and how many kernels it left in the cache."""
    cache = tmp_path_factory.mktemp("triton")
    answers = run_without_a_gpu(COMPILE, cache)
    return answers, len(list(cache.rglob("*.cubin")))


@pytest.mark.slow
def test_every_moe_op_compiles_for_ampere_and_hopper_without_a_gpu(tmp_path):
    answers = run_without_a_gpu(COMPILE_MOE, tmp_path)

    assert len(answers) == 16
    for _, _, shared_memory_bytes, registers, _ in answers:
        assert 0 < shared_memory_bytes < 48 * 1024
        assert 0 < registers <= 255


@pytest.mark.slow
def test_a_process_without_a_gpu_compiles_for_ampere_and_hopper(compiled):
    answers, _ = compiled

    assert len(answers) == 16
    for _, _, shared_memory_bytes, registers, spills in answers:
        assert 0 < shared_memory_bytes < 48 * 1024
        assert 0 < registers <= 255
        assert spills == 0


@pytest.mark.slow
def test_a_deeper_pipeline_takes_more_shared_memory_unless_it_is_forced_off(compiled):
    answers, _ = compiled

    for first, second in zip(answers[::2], answers[1::2], strict=True):
        op, major, shared_memory_bytes = first[:3]
        if op == "shrink" and first[2] != second[2]:
            assert shared_memory_bytes < second[2]
        if op == "expand" and major == 9:
            assert first == second


@pytest.mark.slow
def test_what_launches_alike_is_compiled_once(compiled):
    _, kernels = compiled

    assert kernels == 14  # 16 less expand's second depth on Hopper, for two shapes
