"""The expand kernel: ``out[token, slice] (+)= x[slice, token] @ B[slice, lora(token)].T``.

Tiling, grid, masking and the tables of unequal slices are those of vLLM's ``lora_expand`` (0.33.0),
so that figures measured here hold for vLLM.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import triton
import triton.language as tl

from autotune.measure.kernels.dependent import dependent_launch
from autotune.measure.kernels.tiles import multiply_along_k, tile_columns, tile_rows

if TYPE_CHECKING:
    from autotune.launch.config import KernelConfig
    from autotune.launch.shape import KernelShape
    from autotune.measure.kernels.inputs import Inputs, Operands


@triton.jit  # type: ignore[untyped-decorator]  # triton ships no types
def expand_kernel(  # noqa: PLR0913, PLR0917 - a kernel takes every pointer, size and stride by itself
    x: tl.tensor,
    weights: tl.tensor,
    out: tl.tensor,
    m: tl.tensor,
    n: tl.tensor,
    k: tl.tensor,
    token_indices: tl.tensor,
    num_tokens_per_lora: tl.tensor,
    lora_token_start_loc: tl.tensor,
    lora_ids: tl.tensor,
    slice_starts: tl.tensor,
    slice_sizes: tl.tensor,
    x_stride_slice: tl.tensor,
    x_stride_m: tl.tensor,
    x_stride_k: tl.tensor,
    weights_stride_lora: tl.tensor,
    weights_stride_n: tl.tensor,
    weights_stride_k: tl.tensor,
    out_stride_m: tl.tensor,
    out_stride_n: tl.tensor,
    block_m: tl.constexpr,
    block_n: tl.constexpr,
    block_k: tl.constexpr,
    even_k: tl.constexpr,
    add_inputs: tl.constexpr,
    num_slices: tl.constexpr,
    equal_slices: tl.constexpr,
    use_gdc: tl.constexpr,
) -> None:
    """One tile (block_m tokens, block_n of the output) of one slice and LoRA."""
    m_tiles = tl.cdiv(m, block_m)
    n_tiles = tl.cdiv(n, block_n)
    tile = tl.program_id(axis=0)
    m_tile = tile % m_tiles
    n_tile = tile // m_tiles % n_tiles

    slice_id = tl.program_id(axis=1)
    lora_slot = tl.program_id(axis=2)
    lora_id = tl.load(lora_ids + lora_slot)
    if lora_id == -1:
        return
    tokens = tl.load(num_tokens_per_lora + lora_slot)
    first_row = m_tile * block_m
    if first_row >= tokens:
        return
    slice_size = n if equal_slices else tl.load(slice_sizes + slice_id)
    if n_tile * block_n >= slice_size:
        return
    rows_here = min(block_m, tokens - first_row)
    rows = tile_rows(token_indices, lora_token_start_loc, lora_slot, first_row, rows_here, block_m)

    if num_slices == 1:
        slice_x = x
        slice_weights = weights
        slice_start = slice_starts
    else:
        slice_x = x + slice_id.to(tl.int64) * x_stride_slice
        slice_weights = tl.load(weights + slice_id).to(tl.pointer_type(out.dtype.element_ty))
        slice_start = tl.load(slice_starts + slice_id)
    if equal_slices:
        stride_lora = weights_stride_lora
        stride_n = weights_stride_n
        stride_k = weights_stride_k
    else:
        # stride_k is loaded even though it is always 1: vLLM's kernel loads it too. A compiler that
        # knew the value would load the weights in another way.
        stride_lora = tl.load(weights_stride_lora + slice_id)
        stride_n = tl.load(weights_stride_n + slice_id)
        stride_k = tl.load(weights_stride_k + slice_id)
    depth = tl.arange(0, block_k)
    a = slice_x + rows[:, None] * x_stride_m + depth[None, :] * x_stride_k
    b = (
        slice_weights
        + lora_id.to(tl.int64) * stride_lora
        + depth[:, None] * stride_k
        + tile_columns(n_tile, slice_size, block_n)[None, :] * stride_n
    )
    total = multiply_along_k(
        a, b, x_stride_k, stride_k, k, 0, block_m, block_n, block_k, 1, even_k, use_gdc
    ).to(out.dtype.element_ty)

    columns = n_tile * block_n + tl.arange(0, block_n)
    target = (
        out
        + rows[:, None].to(tl.int64) * out_stride_m
        + (columns + slice_start)[None, :] * out_stride_n
    )
    mask = (tl.arange(0, block_m)[:, None] < rows_here) & (columns[None, :] < slice_size)
    if add_inputs:
        total += tl.load(target, mask=mask)
    tl.store(target, total, mask=mask)


def grid(shape: KernelShape, config: KernelConfig) -> tuple[int, int, int]:
    """Thread blocks: (tiles of the largest slice, slices, LoRA slots)."""
    rows = triton.cdiv(shape.num_tokens, config.block_m)
    columns = triton.cdiv(shape.hidden_size, config.block_n)
    return (rows * columns, shape.num_slices, shape.lora_slots)


def arguments(
    shape: KernelShape, config: KernelConfig, operands: Operands, capability: tuple[int, int]
) -> dict[str, Any]:
    """The kernel's arguments, for a launch and for compiling alike.

    All tensors are contiguous, so every number follows from the shape. A compile with stand-ins for
    the tensors therefore gives the same specialisation as the later launch.

    Args:
        shape: The shape.
        config: The configuration.
        operands: Tensors, or stand-ins for them.
        capability: The GPU's compute capability.
    """
    m, n, k = shape.num_tokens, shape.hidden_size, shape.rank
    own = {
        "m": m,
        "n": n,
        "k": k,
        "slice_starts": operands.slice_starts,
        "slice_sizes": operands.slice_sizes,
        "x_stride_slice": m * k,
        "x_stride_m": k,
        "x_stride_k": 1,
        "out_stride_m": sum(shape.slice_sizes),
        "out_stride_n": 1,
        "even_k": k % config.block_k == 0,
        "add_inputs": shape.add_inputs,
        "num_slices": shape.num_slices,
        "equal_slices": len(set(shape.slice_sizes)) == 1,
    }
    dependent = dependent_launch(shape, capability)
    return operands.as_arguments() | own | config.as_dict() | dependent


def launch(inputs: Inputs, config: KernelConfig, weight_set: int) -> None:
    """Enqueue the kernel.

    Args:
        inputs: x (num_slices, m, rank) float32, B num_slices x (max_loras, n_slice, rank),
            out (m, sum of n_slice).
        config: The configuration, in which the forced parameters are set already.
        weight_set: Which of the rotating weight sets is read.
    """
    shape = inputs.shape
    kernel_arguments = arguments(shape, config, inputs.operands[weight_set], inputs.capability)
    expand_kernel[grid(shape, config)](**kernel_arguments)
