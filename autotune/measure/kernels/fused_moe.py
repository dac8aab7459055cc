"""The kernel of the four fused-MoE LoRA ops: rows of one adapter's expert times its weights.

    w13_shrink  out[slice, row] = x[token(row)] @ A[slice, lora, expert].T
    w13_expand  out[row, slice] += x[slice, row] @ B[slice, lora, expert].T
    w2_shrink   out[row] = x[row] @ A[lora, expert].T
    w2_expand   out[row] += x[row] @ B[lora, expert].T * weight(row)

A row is a (token, expert) pair. Tiling, grid, split-K, masking and the two ways to assign blocks to
rows are those of vLLM's ``_fused_moe_lora_kernel`` (0.33.0), which serves all four ops too. The
tensor memory accelerator and dependent launches of vLLM's kernel are left out.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import triton
import triton.language as tl

from autotune.launch.op import LoraOp
from autotune.launch.sizes import assigns_naively, is_shrink, launched_rows, matmul_sizes
from autotune.measure.kernels.layout import adds_to_output, layout, shares_weights
from autotune.measure.kernels.tiles import multiply_masked_along_k, tile_in_groups

if TYPE_CHECKING:
    from autotune.launch.config import KernelConfig
    from autotune.launch.shape import KernelShape
    from autotune.measure.kernels.inputs import Inputs
    from autotune.measure.kernels.moe_inputs import MoeOperands
    from autotune.measure.kernels.routing import Alignment

#: Arguments that change with every batch, for which Triton must not compile a new kernel each time.
#: As in vLLM, the compiler therefore knows nothing of their alignment.
CHANGING = (
    "padded_rows",
    "num_rows",
    "x_stride_slice",
    "out_stride_slice",
    "sorted_stride_lora",
    "experts_stride_lora",
)


@triton.jit  # type: ignore[untyped-decorator]  # triton ships no types
def block_lora(
    token_lora_mapping: tl.tensor,
    lora_ids: tl.tensor,
    block: tl.tensor,
    top_k: tl.tensor,
    naive: tl.constexpr,
) -> tl.tensor:
    """The adapter of a block: naively that of its only row's token, else that of the slot."""
    if naive:
        return tl.load(token_lora_mapping + block // top_k)
    else:  # noqa: RET505 - only then does Triton leave one of the two out
        return tl.load(lora_ids + tl.program_id(axis=2))


@triton.jit  # type: ignore[untyped-decorator]  # triton ships no types
def block_rows(  # noqa: PLR0913, PLR0917 - Triton has no records to group operands in
    sorted_token_ids: tl.tensor,
    lora_id: tl.tensor,
    sorted_stride_lora: tl.tensor,
    block: tl.tensor,
    num_rows: tl.tensor,
    block_m: tl.constexpr,
    naive: tl.constexpr,
) -> tl.tensor:
    """The rows of a block, int32; ``num_rows`` stands for no row.

    An adapter's rows are padded to whole blocks, so a block never reads past them.
    """
    within = tl.arange(0, block_m)
    if naive:
        return tl.where(within == 0, block, num_rows)
    else:  # noqa: RET505 - only then does Triton leave one of the two out
        start = lora_id.to(tl.int64) * sorted_stride_lora + block * block_m
        return tl.load(sorted_token_ids + start + within)


@triton.jit  # type: ignore[untyped-decorator]  # triton ships no types
def write_tile(
    target: tl.tensor,
    total: tl.tensor,
    mask: tl.tensor,
    split_k: tl.constexpr,
    add_inputs: tl.constexpr,
) -> None:
    """Write a tile or add it to the output; with split-K atomically, as tiles share a sum."""
    if split_k > 1:
        tl.atomic_add(target, total, mask=mask, sem="relaxed")
    elif add_inputs:
        tl.store(target, tl.load(target, mask=mask, other=0.0) + total, mask=mask)
    else:
        tl.store(target, total, mask=mask)


@triton.jit(do_not_specialize=CHANGING)  # type: ignore[untyped-decorator]  # triton ships no types
def fused_moe_kernel(  # noqa: PLR0913, PLR0917 - a kernel takes every pointer, size and stride by itself
    x: tl.tensor,
    weights: tl.tensor,
    out: tl.tensor,
    topk_weights: tl.tensor,
    sorted_token_ids: tl.tensor,
    expert_ids: tl.tensor,
    num_tokens_post_padded: tl.tensor,
    token_lora_mapping: tl.tensor,
    lora_ids: tl.tensor,
    adapter_enabled: tl.tensor,
    n: tl.tensor,
    k: tl.tensor,
    padded_rows: tl.tensor,
    num_rows: tl.tensor,
    top_k: tl.tensor,
    max_loras: tl.tensor,
    x_stride_slice: tl.tensor,
    x_stride_m: tl.tensor,
    x_stride_k: tl.tensor,
    weights_stride_lora: tl.tensor,
    weights_stride_expert: tl.tensor,
    weights_stride_n: tl.tensor,
    weights_stride_k: tl.tensor,
    out_stride_slice: tl.tensor,
    out_stride_m: tl.tensor,
    out_stride_n: tl.tensor,
    sorted_stride_lora: tl.tensor,
    experts_stride_lora: tl.tensor,
    block_m: tl.constexpr,
    block_n: tl.constexpr,
    block_k: tl.constexpr,
    split_k: tl.constexpr,
    group_size_m: tl.constexpr,
    rows_per_x: tl.constexpr,
    x_slices: tl.constexpr,
    out_slices: tl.constexpr,
    naive: tl.constexpr,
    mul_routed_weight: tl.constexpr,
    add_inputs: tl.constexpr,
) -> None:
    """One tile (block_m rows of one expert, block_n of n) of one slice and LoRA, one part of k.

    ``padded_rows`` is the number of rows that have tiles, ``num_rows`` that of the output. Each row
    of x serves ``rows_per_x`` rows of the output.
    """
    program = tl.program_id(axis=0)
    k_part = program % split_k
    tile = program // split_k
    m_tile, n_tile = tile_in_groups(
        tile, tl.cdiv(padded_rows, block_m), tl.cdiv(n, block_n), group_size_m
    )
    slice_id = tl.program_id(axis=1)

    lora_id = block_lora(token_lora_mapping, lora_ids, m_tile, top_k, naive)
    if lora_id == -1:
        return
    if tl.load(adapter_enabled + lora_id) == 0:
        return
    if lora_id >= max_loras:
        return
    experts = expert_ids
    if not naive:
        if m_tile * block_m >= tl.load(num_tokens_post_padded + lora_id):
            return
        experts += lora_id * experts_stride_lora
    expert_id = tl.load(experts + m_tile)
    if expert_id == -1:
        return
    rows = block_rows(
        sorted_token_ids, lora_id, sorted_stride_lora, m_tile, num_rows, block_m, naive
    )
    rows_inside = rows < num_rows
    columns = n_tile * block_n + tl.arange(0, block_n)
    columns_inside = columns < n

    # Rows and experts times their strides outgrow int32 in long batches and large layers.
    depth = k_part * block_k + tl.arange(0, block_k)
    # The compiler does not know how strides of slices are aligned, so a pointer loses its alignment
    # when they are added to it. They are added only where there is more than one slice.
    if x_slices > 1:
        x += slice_id.to(tl.int64) * x_stride_slice
    if out_slices > 1:
        out += slice_id.to(tl.int64) * out_stride_slice
    a = x + (rows // rows_per_x)[:, None].to(tl.int64) * x_stride_m + depth[None, :] * x_stride_k
    slice_weights = tl.load(weights + slice_id).to(tl.pointer_type(x.dtype.element_ty))
    b = (
        slice_weights
        + lora_id.to(tl.int64) * weights_stride_lora
        + expert_id.to(tl.int64) * weights_stride_expert
        + depth[:, None] * weights_stride_k
        + columns[None, :] * weights_stride_n
    )
    total = multiply_masked_along_k(
        a,
        b,
        rows_inside,
        columns_inside,
        x_stride_k,
        weights_stride_k,
        k,
        k_part * block_k,
        block_m,
        block_n,
        block_k,
        split_k,
    )
    if mul_routed_weight:
        total *= tl.load(topk_weights + rows, mask=rows_inside, other=0.0)[:, None]
    total = total.to(out.dtype.element_ty)

    target = out + rows[:, None].to(tl.int64) * out_stride_m + columns[None, :] * out_stride_n
    mask = rows_inside[:, None] & columns_inside[None, :]
    write_tile(target, total, mask, split_k, add_inputs)


def grid(shape: KernelShape, config: KernelConfig) -> tuple[int, int, int]:
    """Thread blocks: (parts of k x tiles, slices, LoRA slots).

    Where blocks are assigned naively, a block's row tells its LoRA, and there is one slot.
    """
    _, n, _ = matmul_sizes(shape)
    rows = launched_rows(shape, config.block_m)
    tiles = triton.cdiv(rows, config.block_m) * triton.cdiv(n, config.block_n)
    slots = 1 if assigns_naively(shape) else shape.lora_slots
    return ((config.split_k or 1) * tiles, shape.num_slices, slots)


def arguments(
    shape: KernelShape, config: KernelConfig, operands: MoeOperands, alignment: Alignment
) -> dict[str, Any]:
    """The kernel's arguments, for a launch and for compiling alike.

    All tensors are contiguous, or shared by experts, so every number follows from the shape. A
    compile with stand-ins for the tensors therefore gives the same specialisation as the launch.

    Args:
        shape: The shape.
        config: The configuration.
        operands: Tensors, or stand-ins for them.
        alignment: The rows of each block, made for the configuration's ``block_m``, or stand-ins.
    """
    own = {
        "sorted_token_ids": alignment.sorted_token_ids,
        "expert_ids": alignment.expert_ids,
        "num_tokens_post_padded": alignment.num_tokens_post_padded,
        "padded_rows": launched_rows(shape, config.block_m),
        "top_k": shape.top_k,
        "max_loras": shape.max_loras,
        "rows_per_x": shape.top_k if shape.op is LoraOp.W13_SHRINK else 1,
        "x_slices": 1 if is_shrink(shape.op) else shape.num_slices,
        "out_slices": shape.num_slices,
        "naive": assigns_naively(shape),
        "mul_routed_weight": shape.op is LoraOp.W2_EXPAND,
        "add_inputs": adds_to_output(shape),
    }
    return operands._asdict() | own | _sizes_and_strides(shape, config) | config.as_dict()


def _sizes_and_strides(shape: KernelShape, config: KernelConfig) -> dict[str, int]:
    _, n, k = matmul_sizes(shape)
    sizes, naive = layout(shape), assigns_naively(shape)
    padded, num_rows = launched_rows(shape, config.block_m), sizes.out[-2]
    shared = shares_weights(shape)
    return {
        "n": n,
        "k": k,
        "num_rows": num_rows,
        "x_stride_slice": sizes.x[-2] * k,
        "x_stride_m": k,
        "x_stride_k": 1,
        "weights_stride_lora": (1 if shared else shape.num_experts) * n * k,
        "weights_stride_expert": 0 if shared else n * k,
        "weights_stride_n": k,
        "weights_stride_k": 1,
        "out_stride_slice": num_rows * n if is_shrink(shape.op) else n,
        "out_stride_m": sizes.out[-1],
        "out_stride_n": 1,
        "sorted_stride_lora": 0 if naive else padded,
        "experts_stride_lora": 0 if naive else triton.cdiv(padded, config.block_m),
    }


def launch(inputs: Inputs, config: KernelConfig, weight_set: int) -> None:
    """Enqueue the kernel; a shrink's output is zeroed first, as vLLM does on every call.

    Args:
        inputs: The tensors; ``Layout`` has their sizes.
        config: The configuration, in which the forced parameters are set already.
        weight_set: Which of the rotating weight sets is read.
    """
    shape, moe = inputs.shape, inputs.moe
    if moe is None:
        raise ValueError(f"inputs of {shape.op.value} have no experts")
    if is_shrink(shape.op):
        inputs.out.zero_()  # split_k adds to it, and rows without a LoRA are not written
    alignment = moe.alignment(config.block_m)
    fused_moe_kernel[grid(shape, config)](
        **arguments(shape, config, moe.operands[weight_set], alignment)
    )
