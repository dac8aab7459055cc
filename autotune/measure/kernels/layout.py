"""Sizes and types of the tensors that an op reads and writes, as vLLM allocates them.

A *row* is a row of the output. For dense ops it stands for a token. In a mixture of experts it
stands for a (token, expert) pair: each token has ``top_k`` rows, in the order of the tokens.
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
    """Sizes and types of an op's tensors, all of them contiguous but for shared weights.

    Attributes:
        x: shrink: (m, hidden); w13's shrink: (m, hidden), w2's: (rows, intermediate);
            every expand: (num_slices, rows, rank).
        x_dtype: float32 for the dense expand, else the shape's dtype.
        weights: Per slice, dense: (max_loras, n, k); MoE: (max_loras, num_experts, n, k).
        shared: Per slice, whether its experts share one matrix, with a stride of 0 between them.
        dtype: Type of the weights.
        out: Every shrink: (num_slices, rows, rank); every expand: (rows, sum of the slices' n).
        out_dtype: float32 for the dense shrink, else the shape's dtype.
    """

    x: tuple[int, ...]
    x_dtype: torch.dtype
    weights: tuple[tuple[int, ...], ...]
    shared: tuple[bool, ...]
    dtype: torch.dtype
    out: tuple[int, ...]
    out_dtype: torch.dtype


def layout(shape: KernelShape, *, pair: bool = False) -> Layout:
    """The layout of a shape's tensors.

    Args:
        shape: The shape.
        pair: MoE ops: whether the layout is for the shrink and the expand after it.
    """
    if pair:
        return _pair_layout(shape)
    dtype = getattr(torch, shape.dtype)
    assert isinstance(dtype, torch.dtype)  # noqa: S101 - for mypy; KernelShape checked the name
    rows, weights = num_rows(shape), _weights(shape)
    depth = shape.rank if is_shrink(shape.op) else shape.server_rank
    between = (shape.num_slices, rows, depth), dtype if shape.op.is_moe else torch.float32
    x: tuple[tuple[int, ...], torch.dtype]
    out: tuple[tuple[int, ...], torch.dtype]
    if is_shrink(shape.op):
        rows_read = rows if shape.op is LoraOp.W2_SHRINK else shape.num_tokens
        x, out = ((rows_read, weights[0][-1]), dtype), between
    else:
        x, out = between, ((rows, sum(size[-2] for size in weights)), dtype)
    return Layout(
        x=x[0],
        x_dtype=x[1],
        weights=weights,
        shared=(shares_weights(shape),) * len(weights),
        dtype=dtype,
        out=out[0],
        out_dtype=out[1],
    )


def _pair_layout(shape: KernelShape) -> Layout:
    """The x of the shrink, the weights of both ops, and the out of the expand."""
    shrink, expand = (layout(replace(shape, op=op)) for op in pair_of(shape.op))
    return replace(
        shrink,
        weights=(*shrink.weights, *expand.weights),
        shared=(*shrink.shared, *expand.shared),
        out=expand.out,
        out_dtype=expand.out_dtype,
    )


def pair_of(op: LoraOp) -> tuple[LoraOp, LoraOp]:
    """A MoE op's shrink, and the expand that follows it."""
    if op in {LoraOp.W13_SHRINK, LoraOp.W13_EXPAND}:
        return LoraOp.W13_SHRINK, LoraOp.W13_EXPAND
    return LoraOp.W2_SHRINK, LoraOp.W2_EXPAND


def num_rows(shape: KernelShape) -> int:
    """Rows of the output: tokens, or (token, expert) pairs."""
    return shape.num_tokens * (shape.top_k if shape.op.is_moe else 1)


def adds_to_output(shape: KernelShape, *, pair: bool = False) -> bool:
    """Whether the op adds to its output; with a stream of its own a MoE expand overwrites it.

    Args:
        shape: The shape.
        pair: MoE ops: whether one launch does a shrink and its expand.
    """
    if pair or shape.op in {LoraOp.W13_EXPAND, LoraOp.W2_EXPAND}:
        return not shape.dual_stream
    return shape.add_inputs


def shares_weights(shape: KernelShape) -> bool:
    """Whether all experts have one matrix: of a server's shared LoRAs, w13's A and w2's B."""
    return shape.shared_loras and shape.op in {LoraOp.W13_SHRINK, LoraOp.W2_EXPAND}


def _weights(shape: KernelShape) -> tuple[tuple[int, ...], ...]:
    if shape.op is LoraOp.EXPAND:
        return tuple((shape.max_loras, size, shape.rank) for size in shape.slice_sizes)
    _, n, k = matmul_sizes(shape)
    stacked = (shape.max_loras, shape.num_experts) if shape.op.is_moe else (shape.max_loras,)
    return ((*stacked, n, k),) * shape.num_slices
