"""Shapes and configurations that kernel tests are written with."""

from __future__ import annotations

import os
from typing import Any

import pytest

from autotune.ops import LoraOp
from autotune.shapes import KernelShape
from autotune.space import KernelConfig

#: For tests that launch on the CPU. Triton decides when a kernel is defined, so at import.
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


def make_config(op: LoraOp, **changes: int) -> KernelConfig:
    """The smallest configuration of an op, with changes."""
    values = {"block_m": 16, "block_n": 16, "block_k": 16, "num_warps": 4, "num_stages": 2}
    split = {"split_k": 1, "group_size_m": 8} if op is LoraOp.SHRINK else {}
    return KernelConfig.from_mapping(op, {**values, **split, **changes})
