"""Shapes and configurations for tests of kernels."""

from __future__ import annotations

import os
from typing import Any

import pytest

from autotune.launch.config import KernelConfig
from autotune.launch.environment import Target
from autotune.launch.op import LoraOp
from autotune.launch.shape import KernelShape

#: An A100 and an H100, as targets to compile for.
A100 = Target(capability=(8, 0), multiprocessors=108, shared_memory_bytes=166_912)
H100 = Target(capability=(9, 0), multiprocessors=132, shared_memory_bytes=232_448)

#: For tests that launch on the CPU. Triton reads the variable when a kernel is defined, at import.
interpreted = pytest.mark.skipif(
    os.environ.get("TRITON_INTERPRET") != "1",
    reason="needs Triton's interpreter (TRITON_INTERPRET=1); tests/gpu runs the compiled kernels",
)


def shrink_shape(**changes: Any) -> KernelShape:
    """A small shrink in float16: the interpreter's products of bfloat16 are garbage."""
    table = {"num_tokens": 5, "hidden_size": 70, "rank": 8, "num_slices": 1, "max_loras": 2}
    return KernelShape.from_mapping({"op": "shrink", "dtype": "float16", **table, **changes})


def expand_shape(**changes: Any) -> KernelShape:
    """A small expand in float16."""
    table = {"num_tokens": 5, "slice_sizes": [40], "rank": 8, "max_loras": 2}
    return KernelShape.from_mapping({"op": "expand", "dtype": "float16", **table, **changes})


#: The ops of a layer, in the order in which they run.
MOE_OPS = tuple(op for op in LoraOp if op.is_moe)

#: Sizes of a small layer whose tokens are sorted: 48 pairs * 8 > 4 experts * 2 adapters.
MOE_LAYER = {"num_tokens": 24, "hidden_size": 70, "rank": 8, "max_loras": 2, "num_experts": 4}


def moe_shape(op: LoraOp, **changes: Any) -> KernelShape:
    """A small fused-MoE op in float16."""
    table = {"op": op.value, "dtype": "float16", "top_k": 2, "intermediate_size": 40, **MOE_LAYER}
    return KernelShape.from_mapping({**table, **changes})


def naive_changes() -> dict[str, int]:
    """Sizes with which blocks are assigned naively: 2 pairs * 8 <= 8 experts * 2 adapters."""
    return {"num_tokens": 1, "num_experts": 8}


def make_config(op: LoraOp, **changes: int) -> KernelConfig:
    """The smallest configuration of an op, with changes."""
    values = {"block_m": 16, "block_n": 16, "block_k": 16, "num_warps": 4, "num_stages": 2}
    split = {} if op is LoraOp.EXPAND else {"split_k": 1, "group_size_m": 8}
    return KernelConfig.from_mapping(op, {**values, **split, **changes})
