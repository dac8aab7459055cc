"""Selections for the exporter's tests."""

from __future__ import annotations

from typing import Any

from hypothesis import strategies as st

from autotune.choose.selection import Ratio, Selection
from autotune.launch.config import KernelConfig
from autotune.launch.environment import Environment
from autotune.launch.op import DENSE_OPS, VLLM_RANKS, LoraOp
from autotune.launch.shape import KernelShape

H100 = Environment(
    gpu="NVIDIA H100 80GB HBM3",
    provider="builtin",
    provider_version="1",
    torch="2.11.0",
    triton="3.6.0",
    driver="580.1",
)

SHRINK_CONFIG: dict[str, int] = {
    "block_m": 16,
    "block_n": 16,
    "block_k": 64,
    "split_k": 16,
    "group_size_m": 8,
    "num_warps": 2,
    "num_stages": 4,
    "num_ctas": 1,
}
EXPAND_CONFIG: dict[str, int] = {
    "block_m": 16,
    "block_n": 128,
    "block_k": 16,
    "num_warps": 4,
    "num_stages": 1,
    "num_ctas": 1,
}


def qkv_shrink(**changes: Any) -> KernelShape:
    """Llama-3.1-8B's qkv at max_loras 8, rank 16, 16 tokens."""
    table = {"op": "shrink", "num_tokens": 16, "hidden_size": 4096, "num_slices": 3}
    return KernelShape.from_mapping(table | {"rank": 16, "max_loras": 8} | changes)


def qkv_expand(**changes: Any) -> KernelShape:
    table = {"op": "expand", "num_tokens": 16, "slice_sizes": [4096, 1024, 1024]}
    return KernelShape.from_mapping(table | {"rank": 16, "max_loras": 8} | changes)


def selection(shape: KernelShape, **changes: int) -> Selection:
    """A selection whose configuration is the usual one with some parameters changed."""
    usual = SHRINK_CONFIG if shape.op is LoraOp.SHRINK else EXPAND_CONFIG
    config = KernelConfig.from_mapping(shape.op, usual | changes)
    default = KernelConfig.from_mapping(shape.op, usual | {"num_warps": 16})
    return Selection(
        shape=shape,
        config=config,
        default=default,
        samples_us={config: (10.123456, 10.2, 10.0)} | {default: (20.0, 20.5, 20.25)},
        ratio=Ratio(value=2.00049, low=1.98765432, high=2.1),
        trials=200,
        outcomes={"too_slow": 120, "ok": 80},
    )


_values = st.integers(1, 4096)


@st.composite
def shapes(draw: st.DrawFn) -> KernelShape:
    """Any shape that vLLM may ask for."""
    op = draw(st.sampled_from(DENSE_OPS))
    max_loras = draw(st.integers(1, 64))
    table: dict[str, Any] = {
        "op": op.value,
        "num_tokens": draw(st.integers(1, 8192)),
        "rank": draw(st.sampled_from(VLLM_RANKS)),
        "max_loras": max_loras,
        "active_loras": draw(st.integers(1, max_loras)),
        "dtype": draw(st.sampled_from(["bfloat16", "float16"])),
    }
    if op is LoraOp.EXPAND:
        table["slice_sizes"] = draw(st.lists(st.integers(1, 60_000), min_size=1, max_size=4))
        table["add_inputs"] = draw(st.booleans())
    else:
        table["hidden_size"] = draw(st.integers(1, 60_000))
        table["num_slices"] = draw(st.integers(1, 4))
    return KernelShape.from_mapping(table)


@st.composite
def selections(draw: st.DrawFn) -> Selection:
    """Any selection."""
    shape = draw(shapes())
    return selection(shape, **{name: draw(_values) for name in shape.op.parameters})


def selection_lists() -> st.SearchStrategy[list[Selection]]:
    """Selections of which no two share a file and a look-up key."""
    return st.lists(
        selections(),
        min_size=1,
        max_size=12,
        unique_by=lambda one: (one.shape.file_name("gpu"), one.shape.lookup_key),
    )
