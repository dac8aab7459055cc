"""The shrink kernel: ``out[slice, token] = x[token] @ A[slice, lora(token)].T * scaling``.

Tiling, grid, split-K and masking are those of vLLM's ``lora_shrink`` (0.33.0), so that figures
measured here hold for vLLM.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import triton
import triton.language as tl

from autotune.measure.kernels.dependent import dependent_launch
from autotune.measure.kernels.tiles import multiply_along_k, tile_columns, tile_in_groups, tile_rows

if TYPE_CHECKING:
    from autotune.launch.config import KernelConfig
    from autotune.launch.shape import KernelShape
    from autotune.measure.kernels.inputs import Inputs, Operands


@triton.jit  # type: ignore[untyped-decorator]  # triton ships no types
def shrink_kernel(  # noqa: PLR0913, PLR0917 - a kernel takes every pointer, size and stride by itself
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
    scaling: tl.tensor,
    x_stride_m: tl.tensor,
    x_stride_k: tl.tensor,
    weights_stride_lora: tl.tensor,
    weights_stride_n: tl.tensor,
    weights_stride_k: tl.tensor,
    out_stride_slice: tl.tensor,
    out_stride_m: tl.tensor,
    out_stride_n: tl.tensor,
    block_m: tl.constexpr,
    block_n: tl.constexpr,
    block_k: tl.constexpr,
    split_k: tl.constexpr,
    group_size_m: tl.constexpr,
    even_k: tl.constexpr,
    num_slices: tl.constexpr,
    use_gdc: tl.constexpr,
) -> None:
    """One tile (block_m tokens, block_n of the rank) of one slice and LoRA, one part of k."""
    m_tiles = tl.cdiv(m, block_m)
    n_tiles = tl.cdiv(n, block_n)
    program = tl.program_id(axis=0)
    k_part = program % split_k
    tile = program // split_k
    m_tile, n_tile = tile_in_groups(tile, m_tiles, n_tiles, group_size_m)

    slice_id = tl.program_id(axis=1)
    lora_slot = tl.program_id(axis=2)
    lora_id = tl.load(lora_ids + lora_slot)
    if lora_id == -1:
        return
    tokens = tl.load(num_tokens_per_lora + lora_slot)
    first_row = m_tile * block_m
    if first_row >= tokens:
        return
    rows_here = min(block_m, tokens - first_row)
    rows = tile_rows(token_indices, lora_token_start_loc, lora_slot, first_row, rows_here, block_m)

    if num_slices == 1:
        slice_weights = weights
    else:
        slice_weights = tl.load(weights + slice_id).to(tl.pointer_type(x.dtype.element_ty))
    depth = k_part * block_k + tl.arange(0, block_k)
    a = x + rows[:, None].to(tl.int64) * x_stride_m + depth[None, :] * x_stride_k
    b = (
        slice_weights
        + lora_id.to(tl.int64) * weights_stride_lora
        + tile_columns(n_tile, n, block_n)[None, :] * weights_stride_n
        + depth[:, None] * weights_stride_k
    )
    total = multiply_along_k(
        a,
        b,
        x_stride_k,
        weights_stride_k,
        k,
        k_part * block_k,
        block_m,
        block_n,
        block_k,
        split_k,
        even_k,
        use_gdc,
    )
    if use_gdc:
        tl.extra.cuda.gdc_launch_dependents()
    total *= scaling

    columns = n_tile * block_n + tl.arange(0, block_n)
    target = (
        out
        + slice_id.to(tl.int64) * out_stride_slice
        + rows[:, None] * out_stride_m
        + columns[None, :] * out_stride_n
    )
    mask = (tl.arange(0, block_m)[:, None] < rows_here) & (columns[None, :] < n)
    if split_k == 1:
        tl.store(target, total, mask=mask)
    else:
        tl.atomic_add(target, total, mask=mask, sem="relaxed")


def grid(shape: KernelShape, config: KernelConfig) -> tuple[int, int, int]:
    """Thread blocks: (parts of k x tiles, slices, LoRA slots)."""
    tiles = triton.cdiv(shape.num_tokens, config.block_m) * triton.cdiv(shape.rank, config.block_n)
    return (_split_k(config) * tiles, shape.num_slices, shape.lora_slots)


def arguments(
    shape: KernelShape,
    config: KernelConfig,
    operands: Operands,
    capability: tuple[int, int],
    scaling: float,
) -> dict[str, Any]:
    """The kernel's arguments, for a launch and for compiling alike.

    All tensors are contiguous, so every number follows from the shape. A compile with stand-ins for
    the tensors therefore gives the same specialisation as the later launch.

    Args:
        shape: The shape.
        config: The configuration.
        operands: Tensors, or stand-ins for them.
        capability: The GPU's compute capability.
        scaling: What the product is multiplied by.
    """
    m, n, k = shape.num_tokens, shape.rank, shape.hidden_size
    own = {
        "m": m,
        "n": n,
        "k": k,
        "scaling": scaling,
        "x_stride_m": k,
        "x_stride_k": 1,
        "out_stride_slice": m * n,
        "out_stride_m": n,
        "out_stride_n": 1,
        "even_k": k % (config.block_k * _split_k(config)) == 0,
        "num_slices": shape.num_slices,
    }
    dependent = dependent_launch(shape, capability)
    return operands.as_arguments() | own | config.as_dict() | dependent


def launch(inputs: Inputs, config: KernelConfig, weight_set: int) -> None:
    """Zero the output and enqueue the kernel, as vLLM's wrapper does on every call.

    Args:
        inputs: x (m, hidden), A num_slices x (max_loras, rank, hidden), out (num_slices, m, rank).
        config: The configuration.
        weight_set: Which of the rotating weight sets is read.
    """
    inputs.out.zero_()  # with split_k above 1 the kernel adds to it
    shape, operands = inputs.shape, inputs.operands[weight_set]
    kernel_arguments = arguments(shape, config, operands, inputs.capability, inputs.scaling)
    shrink_kernel[grid(shape, config)](**kernel_arguments)


def _split_k(config: KernelConfig) -> int:
    return config.split_k or 1
