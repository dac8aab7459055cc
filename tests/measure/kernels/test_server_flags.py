"""Flags of a server that change a launch: active LoRAs, a stream of LoRA's own, shared experts."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from autotune.launch.config import KernelConfig
from autotune.launch.op import LoraOp
from autotune.launch.shape import KernelShape
from autotune.measure.kernels import expand, fused_moe, shrink
from autotune.measure.kernels.builtin import BuiltinProvider
from autotune.measure.kernels.dependent import dependent_launch
from autotune.measure.kernels.inputs import (
    Inputs,
    make_inputs,
    operands_without_tensors,
    weight_bytes_touched,
    weight_set_bytes,
)
from autotune.measure.kernels.layout import shares_weights
from autotune.measure.kernels.moe_inputs import moe_operands_without_tensors
from autotune.measure.kernels.reference import check_result, expect, reference
from autotune.measure.roofline import bytes_moved
from tests.measure.kernels.cases import (
    A100,
    H100,
    MOE_OPS,
    expand_shape,
    interpreted,
    make_config,
    moe_shape,
    shrink_shape,
)
from tests.patience import PATIENCE_S
from tests.profiles import some

DENSE = {LoraOp.SHRINK: shrink_shape, LoraOp.EXPAND: expand_shape}
GRIDS = {LoraOp.SHRINK: shrink.grid, LoraOp.EXPAND: expand.grid}

#: Still sorted, with several blocks: 10 pairs * 8 > 2 experts * 3 adapters.
SORTED = {"num_tokens": 5, "num_experts": 2, "max_loras": 3}


def any_shape(op: LoraOp, **changes: object) -> KernelShape:
    if op in DENSE:
        return DENSE[op](**changes)
    return moe_shape(op, **{**SORTED, **changes})


def slots_of(shape: KernelShape) -> int:
    """LoRAs in the grid of the builtin kernel."""
    grid = GRIDS.get(shape.op, fused_moe.grid)
    return grid(shape, make_config(shape.op))[-1]


def inputs_of(shape: KernelShape) -> Inputs:
    return make_inputs(shape, device="cpu", weight_sets=2, seed=7)


def problem(inputs: Inputs, config: KernelConfig) -> str:
    expected = expect(inputs, weight_set=1)
    provider = BuiltinProvider()
    return check_result(lambda: provider.launch(inputs, config, 1), inputs, expected).problem


# ------------------------------------------------------------------ active LoRAs


@pytest.mark.parametrize("op", LoraOp)
@pytest.mark.parametrize(("active", "slots"), [(1, 1), (2, 2), (3, 4)])
def test_a_specialized_grid_has_the_adapters_in_use(op, active, slots):
    shape = any_shape(op, num_tokens=7, max_loras=3, active_loras=active)
    specialized = any_shape(
        op, num_tokens=7, max_loras=3, active_loras=active, specialize_active_lora=True
    )

    assert (slots_of(shape), slots_of(specialized)) == (4, slots)


@given(st.integers(1, 300), st.integers(1, 40), st.data())
def test_one_key_serves_every_number_of_active_loras_that_a_batch_may_have(tokens, loras, data):
    active = data.draw(st.integers(1, loras))
    shape = shrink_shape(num_tokens=tokens, max_loras=loras, active_loras=active)
    assert shape.launches == (loras + 1,)

    table = shape.as_dict() | {"specialize_active_lora": True}
    special = KernelShape.from_mapping(table)

    assert special.lookup_key == shape.lookup_key
    assert special.label != shape.label
    assert special.lora_slots in special.launches
    assert special.lora_slots >= special.loras_with_tokens
    assert max(special.launches) <= loras + 1
    assert KernelShape.from_mapping(special.as_dict()) == special


# ------------------------------------------------------------------ a stream of its own


def test_a_dense_kernel_is_a_dependent_launch_from_hopper_on(monkeypatch):
    shape = shrink_shape(dual_stream=True)

    assert dependent_launch(shape, H100.capability) == {"use_gdc": True, "launch_pdl": True}
    for other, capability in (
        (shape, A100.capability),
        (shape, (0, 0)),
        (shrink_shape(), H100.capability),
    ):
        assert dependent_launch(other, capability) == {"use_gdc": False}
    monkeypatch.setenv("VLLM_LORA_DISABLE_PDL", "1")
    assert dependent_launch(shape, H100.capability) == {"use_gdc": False}


@pytest.mark.parametrize("op", DENSE, ids=lambda op: op.value)
def test_the_arguments_say_so(op):
    shape = any_shape(op, dual_stream=True)
    operands = operands_without_tensors(shape)
    if op is LoraOp.SHRINK:
        given_ = shrink.arguments(shape, make_config(op), operands, H100.capability, 1.0)
    else:
        given_ = expand.arguments(shape, make_config(op), operands, H100.capability)

    assert given_["use_gdc"]
    assert given_["launch_pdl"]


#: Compiles both ops for two targets, and counts what a dependent launch is made of.
COMPILE = """
import json
from autotune.measure.kernels import ahead, builtin
from tests.measure.kernels.cases import A100, H100, expand_shape, make_config, shrink_shape

found = []
for shape in (shrink_shape(dual_stream=True), expand_shape(dual_stream=True), expand_shape()):
    for target in (A100, H100):
        ahead.compile_for(target.capability)
        config = make_config(shape.op)
        kernel, grid, arguments = builtin._call(shape, config, target.capability)
        compiled = kernel.warmup(grid=grid, **arguments)
        found.append([
            "griddepcontrol.wait" in compiled.asm["ptx"],
            "griddepcontrol.launch_dependents" in compiled.asm["ptx"],
            compiled.metadata.launch_pdl,
        ])
print(json.dumps(found))
"""


@pytest.mark.slow
def test_a_dependent_kernel_waits_for_the_one_before_it(tmp_path):
    """As vLLM's: shrink also lets the next one begin."""
    clean = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    clean |= {"TRITON_CACHE_DIR": str(tmp_path), "CUDA_VISIBLE_DEVICES": ""}
    run = subprocess.run(  # noqa: S603 - the script above
        [sys.executable, "-c", COMPILE],
        cwd=Path(__file__).parents[3],
        env=clean,
        capture_output=True,
        text=True,
        timeout=PATIENCE_S,
        check=False,
    )

    assert run.returncode == 0, run.stderr
    plain, shrinks, expands = [False] * 3, [True, True, True], [True, False, True]
    assert json.loads(run.stdout) == [plain, shrinks, plain, expands, plain, plain]


@pytest.mark.parametrize("op", [LoraOp.W13_EXPAND, LoraOp.W2_EXPAND], ids=lambda op: op.value)
def test_a_moe_expand_beside_the_base_layer_moves_less_since_it_only_writes(op):
    assert bytes_moved(any_shape(op, dual_stream=True)) < bytes_moved(any_shape(op))


# ------------------------------------------------------------------ shared experts


@pytest.mark.parametrize("op", MOE_OPS, ids=lambda op: op.value)
def test_experts_share_the_outer_matrices_alone(op):
    shape = any_shape(op, shared_loras=True)
    weights = inputs_of(shape).weight_sets[0]
    arguments = fused_moe.arguments(shape, make_config(op), *moe_operands_without_tensors(shape))
    strides = ("lora", "expert", "n", "k")

    assert shares_weights(shape) == (op in {LoraOp.W13_SHRINK, LoraOp.W2_EXPAND})
    for one in weights:
        assert one.stride() == tuple(arguments[f"weights_stride_{each}"] for each in strides)
        assert (one.stride(1) == 0) == shares_weights(shape)


@pytest.mark.parametrize("op", MOE_OPS, ids=lambda op: op.value)
@pytest.mark.parametrize("pair", [False, True])
def test_shared_matrices_are_in_memory_once_and_read_once(op, pair):
    shape, apart = any_shape(op, shared_loras=True), any_shape(op)
    fewer = pair or shares_weights(shape)

    assert (weight_set_bytes(shape, pair=pair) < weight_set_bytes(apart, pair=pair)) == fewer
    assert weight_bytes_touched(shape, pair=pair) <= weight_bytes_touched(apart, pair=pair)
    assert weight_bytes_touched(shape, pair=pair) <= weight_set_bytes(shape, pair=pair)


def test_experts_that_share_a_matrix_give_one_result():
    shape = any_shape(LoraOp.W13_SHRINK, shared_loras=True)
    out = reference(inputs_of(shape), 0)  # (num_slices, rows, rank)

    assert out[:, ::2].equal(out[:, 1::2])  # the two experts of each token


# ------------------------------------------------------------------ under the interpreter


@pytest.mark.slow
@interpreted
@pytest.mark.filterwarnings("ignore:Conversion of an array with ndim:DeprecationWarning")
@pytest.mark.parametrize("op", LoraOp)
@pytest.mark.parametrize("flag", ["shared_loras", "dual_stream", "specialize_active_lora"])
def test_the_numbers_are_right_with_a_flag(op, flag):
    if flag == "shared_loras" and not op.is_moe:
        return
    for active in some([2], [1, 3]):
        shape = any_shape(op, num_tokens=5, max_loras=3, active_loras=active, **{flag: True})
        assert problem(inputs_of(shape), make_config(op, block_n=32, block_k=32)) == ""
