"""Sizes and types of the tensors that an op reads and writes, as vLLM allocates them.

A *row* is what one row of the output stands for: a token, and in a mixture of experts a (token,
expert) pair, ``top_k`` of them to a token, in the order of the tokens.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import torch

from autotune.launch.op import LoraOp
from autotune.launch.sizes import is_shrink, matmul_sizes

if TYPE_CHECKING:
    from autotune.launch.shape import KernelShape


@dataclass(frozen=True, slots=True, kw_only=True)
class Layout:
    """Sizes and types of an op's tensors, all of them contiguous.

    Attributes:
        x: shrink: (m, hidden); w13's shrink: (m, hidden), w2's: (rows, intermediate);
            every expand: (num_slices, rows, rank).
        x_dtype: float32 for the dense expand, the shape's elsewhere.
        weights: Per slice, dense: (max_loras, n, k); MoE: (max_loras, num_experts, n, k).
        dtype: Of the weights.
        out: Every shrink: (num_slices, rows, rank); every expand: (rows, sum of the slices' n).
        out_dtype: float32 for the dense shrink, the shape's elsewhere.
    """

    x: tuple[int, ...]
    x_dtype: torch.dtype
    weights: tuple[tuple[int, ...], ...]
    dtype: torch.dtype
    out: tuple[int, ...]
    out_dtype: torch.dtype


def layout(shape: KernelShape, *, pair: bool = False) -> Layout:
    """The layout of a shape's tensors.

    Args:
        shape: The shape.
        pair: MoE ops: as for ``make_inputs``.
    """
    if pair:
        shrink, expand = (layout(replace(shape, op=op)) for op in pair_of(shape.op))
        weights = (*shrink.weights, *expand.weights)
        return replace(shrink, weights=weights, out=expand.out, out_dtype=expand.out_dtype)
    dtype = getattr(torch, shape.dtype)
    assert isinstance(dtype, torch.dtype)  # noqa: S101 - for mypy; KernelShape checked the name
    between_dtype = dtype if shape.op.is_moe else torch.float32
    rows = num_rows(shape)
    depth = shape.rank if is_shrink(shape.op) else shape.server_rank
    between = (shape.num_slices, rows, depth)
    weights = _weights(shape)
    if is_shrink(shape.op):
        reads = rows if shape.op is LoraOp.W2_SHRINK else shape.num_tokens
        x, x_dtype = (reads, weights[0][-1]), dtype
        out, out_dtype = between, between_dtype
        return Layout(
            x=x, x_dtype=x_dtype, weights=weights, dtype=dtype, out=out, out_dtype=out_dtype
        )
    width = sum(size[-2] for size in weights)
    return Layout(
        x=between,
        x_dtype=between_dtype,
        weights=weights,
        dtype=dtype,
        out=(rows, width),
        out_dtype=dtype,
    )


def pair_of(op: LoraOp) -> tuple[LoraOp, LoraOp]:
    """A MoE op's shrink, and the expand that follows it."""
    if op in {LoraOp.W13_SHRINK, LoraOp.W13_EXPAND}:
        return LoraOp.W13_SHRINK, LoraOp.W13_EXPAND
    return LoraOp.W2_SHRINK, LoraOp.W2_EXPAND


def num_rows(shape: KernelShape) -> int:
    """Rows of the output: tokens, or (token, expert) pairs."""
    return shape.num_tokens * (shape.top_k if shape.op.is_moe else 1)


def adds_to_output(shape: KernelShape) -> bool:
    """Whether the op adds to its output; MoE's expands do in normal serving, as the dense one."""
    return shape.add_inputs or shape.op in {LoraOp.W13_EXPAND, LoraOp.W2_EXPAND}


def _weights(shape: KernelShape) -> tuple[tuple[int, ...], ...]:
    if shape.op is LoraOp.EXPAND:
        return tuple((shape.max_loras, size, shape.rank) for size in shape.slice_sizes)
    _, n, k = matmul_sizes(shape)
    stacked = (shape.max_loras, shape.num_experts) if shape.op.is_moe else (shape.max_loras,)
    return ((*stacked, n, k),) * shape.num_slices
