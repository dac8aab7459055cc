"""Parts that the Triton kernels share: order tiles, find their rows, and multiply along k.

The functions run in kernels, not on the host. They leave scheduling as it is in vLLM's kernels, so
that a configuration means the same work in both.
"""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit  # type: ignore[untyped-decorator]  # triton ships no types
def tile_in_groups(
    tile: tl.tensor, m_tiles: tl.tensor, n_tiles: tl.tensor, group_size_m: tl.constexpr
) -> tuple[tl.tensor, tl.tensor]:
    """Row and column of a tile, with tiles ordered in groups of ``group_size_m`` rows.

    Tiles of one column of a group follow each other, so that their weights stay in cache.
    """
    tiles_in_group = group_size_m * n_tiles
    first_m_tile = tile // tiles_in_group * group_size_m
    rows_in_group = min(m_tiles - first_m_tile, group_size_m)
    m_tile = first_m_tile + tile % tiles_in_group % rows_in_group
    return m_tile, tile % tiles_in_group // rows_in_group


@triton.jit  # type: ignore[untyped-decorator]  # triton ships no types
def tile_rows(
    token_indices: tl.tensor,
    lora_token_start_loc: tl.tensor,
    lora_slot: tl.tensor,
    first_row: tl.tensor,
    rows_here: tl.tensor,
    block_m: tl.constexpr,
) -> tl.tensor:
    """The tokens that a tile works on, int32.

    In long batches a row times the model's width outgrows int32, so the caller widens it. Rows past
    ``rows_here`` wrap around so that they read valid memory; the store masks them.
    """
    start = tl.load(lora_token_start_loc + lora_slot) + first_row
    within = tl.arange(0, block_m) % rows_here
    return tl.load(token_indices + start + within)


@triton.jit  # type: ignore[untyped-decorator]  # triton ships no types
def tile_columns(n_tile: tl.tensor, n: tl.tensor, block_n: tl.constexpr) -> tl.tensor:
    """The weight rows that a tile reads; rows past ``n`` wrap around, and the store masks them."""
    columns = n_tile * block_n + tl.arange(0, block_n)
    return tl.max_contiguous(tl.multiple_of(columns % n, block_n), block_n)


@triton.jit  # type: ignore[untyped-decorator]  # triton ships no types
def multiply_along_k(  # noqa: PLR0913, PLR0917 - Triton has no records to group operands in
    a: tl.tensor,
    b: tl.tensor,
    a_stride_k: tl.tensor,
    b_stride_k: tl.tensor,
    k: tl.tensor,
    first_k: tl.tensor,
    block_m: tl.constexpr,
    block_n: tl.constexpr,
    block_k: tl.constexpr,
    split_k: tl.constexpr,
    even_k: tl.constexpr,
    use_gdc: tl.constexpr,
) -> tl.tensor:
    """Every ``split_k``-th block of ``a @ b`` along k, from ``first_k`` on, summed in float32.

    ``a`` (block_m, block_k) and ``b`` (block_k, block_n) are pointers to the first block; ``a`` is
    cast to the type of ``b``. With ``even_k`` no block reaches past ``k``. Without it, blocks that
    end within ``k`` are loaded unmasked, one that reaches past ``k`` is masked, and blocks beyond
    ``k`` are skipped. With ``use_gdc`` the kernel before is waited for once weights are loaded.
    """
    accumulator = tl.zeros((block_m, block_n), dtype=tl.float32)
    step_k: tl.constexpr = block_k * split_k
    for step in range(tl.cdiv(k, step_k)):
        block_start = step * step_k + first_k
        if even_k:  # noqa: SIM114 - only even_k is known when compiling
            b_block = tl.load(b)
            if use_gdc:
                tl.extra.cuda.gdc_wait()
            a_block = tl.load(a).to(b.dtype.element_ty)
            accumulator += tl.dot(a_block, b_block)
        elif block_start + block_k <= k:
            b_block = tl.load(b)
            if use_gdc:
                tl.extra.cuda.gdc_wait()
            a_block = tl.load(a).to(b.dtype.element_ty)
            accumulator += tl.dot(a_block, b_block)
        elif block_start < k:
            inside = block_start + tl.arange(0, block_k) < k
            b_block = tl.load(b, mask=inside[:, None], other=0.0)
            if use_gdc:
                tl.extra.cuda.gdc_wait()
            a_block = tl.load(a, mask=inside[None, :], other=0.0).to(b.dtype.element_ty)
            accumulator += tl.dot(a_block, b_block)
        a += step_k * a_stride_k
        b += step_k * b_stride_k
    return accumulator


@triton.jit  # type: ignore[untyped-decorator]  # triton ships no types
def multiply_masked_along_k(  # noqa: PLR0913, PLR0917 - Triton has no records to group operands in
    a: tl.tensor,
    b: tl.tensor,
    rows_inside: tl.tensor,
    columns_inside: tl.tensor,
    a_stride_k: tl.tensor,
    b_stride_k: tl.tensor,
    k: tl.tensor,
    first_k: tl.tensor,
    block_m: tl.constexpr,
    block_n: tl.constexpr,
    block_k: tl.constexpr,
    split_k: tl.constexpr,
) -> tl.tensor:
    """As ``multiply_along_k``, with every block masked in all directions, as in vLLM's MoE kernel.

    ``rows_inside`` (block_m,) and ``columns_inside`` (block_n,) say which rows of ``a`` and columns
    of ``b`` may be read; the rest counts as 0. ``b``, the weights, is cached at all levels. ``a``
    and ``b`` have the same type.
    """
    accumulator = tl.zeros((block_m, block_n), dtype=tl.float32)
    step_k: tl.constexpr = block_k * split_k
    depth = first_k + tl.arange(0, block_k)
    for step in range(tl.cdiv(k, step_k)):
        inside = depth < k - step * step_k
        b_block = tl.load(
            b, mask=inside[:, None] & columns_inside[None, :], other=0.0, cache_modifier=".ca"
        )
        a_block = tl.load(a, mask=rows_inside[:, None] & inside[None, :], other=0.0)
        accumulator += tl.dot(a_block, b_block)
        a += step_k * a_stride_k
        b += step_k * b_stride_k
    return accumulator
