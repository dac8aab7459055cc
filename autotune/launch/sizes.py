"""The sizes of one launch: its matrix product, its tiles, its rows, its shared memory."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from autotune.launch.config import KernelConfig
from autotune.launch.op import LoraOp
from autotune.launch.shape import KernelShape

#: ``tl.dot`` takes no tile side below 16, so a smaller dimension is padded to 16.
SMALLEST_BLOCK = 16

#: vLLM assigns blocks naively if there are this many experts, times adapters, per (token, expert)
#: pair.
_NAIVE_SPARSITY = 8


def next_power_of_two(value: int) -> int:
    """The smallest power of two that is at least ``value``."""
    return 1 << (value - 1).bit_length()


def is_shrink(op: LoraOp) -> bool:
    """Whether an op projects down to the rank; the others project up from it."""
    return op in {LoraOp.SHRINK, LoraOp.W13_SHRINK, LoraOp.W2_SHRINK}


#: (m, n, k) of a matrix product: m rows, n columns, k that are summed over.
MatmulSizes = tuple[int, int, int]


def matmul_sizes(shape: KernelShape) -> MatmulSizes:
    """(m, n, k) of the largest matrix product that one slice of the shape makes.

    In a mixture of experts that is the product of one expert and one adapter. A token goes to an
    expert once, so there are ``num_tokens`` rows at most, and one row where blocks are assigned
    naively.
    """
    m = 1 if assigns_naively(shape) else shape.num_tokens
    outer = shape.hidden_size
    if shape.op in {LoraOp.W13_EXPAND, LoraOp.W2_SHRINK}:
        outer = shape.intermediate_size
    elif shape.op is LoraOp.W2_EXPAND:
        outer = shape.written_size
    return (m, shape.rank, outer) if is_shrink(shape.op) else (m, outer, shape.server_rank)


def assigns_naively(shape: KernelShape) -> bool:
    """Whether vLLM gives each (token, expert) pair a row of tiles of its own, and sorts nothing.

    vLLM does this if there are few pairs for the number of experts (``add_lora_w13`` in
    ``vllm/lora/punica_wrapper/punica_gpu.py``, 0.33.0), but never with fully sharded LoRAs or
    expert parallelism.
    """
    if not shape.op.is_moe or shape.fully_sharded or shape.global_experts > shape.num_experts:
        return False
    pairs = shape.num_tokens * shape.top_k
    return pairs * _NAIVE_SPARSITY <= shape.num_experts * shape.max_loras


def launched_rows(shape: KernelShape, block_m: int) -> int:
    """Number of rows that the tiles of one LoRA slot are launched for.

    For a dense op these are the tokens. For a MoE op these are the rows that vLLM allocates: enough
    for one adapter to have every (token, expert) pair, with each expert's rows padded to whole
    blocks, experts on other devices included (``moe_lora_align_block_size`` in
    ``vllm/lora/punica_wrapper/punica_gpu.py``, 0.33.0). Most of a MoE op's tiles find no work.

    Args:
        shape: The shape.
        block_m: Rows of a tile.
    """
    if not shape.op.is_moe:
        return shape.num_tokens
    pairs = shape.num_tokens * shape.top_k
    if assigns_naively(shape) or pairs < shape.global_experts:
        return pairs * block_m
    return pairs + shape.global_experts * (block_m - 1)


def block_limits(sizes: MatmulSizes) -> dict[str, int]:
    """By ``block_m``, ``block_n`` and ``block_k``, the largest that a product can fill."""
    sides = zip(("block_m", "block_n", "block_k"), sizes, strict=True)
    return {name: max(SMALLEST_BLOCK, next_power_of_two(size)) for name, size in sides}


def least_shared_memory_bytes(op: LoraOp, config: KernelConfig, value_bytes: int) -> int:
    """Shared memory that the kernel needs at the least, bytes a block.

    A pipeline of ``num_stages`` keeps at least ``num_stages - 1`` tiles in flight. In a MoE op the
    compiler knows nothing of the weights' addresses: it loads two bytes at a time, which it cannot
    pipeline, and cannot always pipeline x. So only one tile of each is certain. ``expand`` may hold
    its activations in registers, so only its weights are counted.

    Args:
        op: The op.
        config: The configuration that is really launched.
        value_bytes: Size of a weight, bytes.
    """
    needed: int = tiles_bytes(op, config.as_dict(), value_bytes)
    return needed


def tiles_bytes(op: LoraOp, values: Mapping[str, Any], value_bytes: int) -> Any:  # noqa: ANN401 - numbers or arrays
    """``least_shared_memory_bytes``, where the parameters' values may also be arrays."""
    block_m, block_n, block_k = (values[name] for name in ("block_m", "block_n", "block_k"))
    if op.is_moe:
        return (block_m + block_n) * block_k * value_bytes
    rows = block_m + block_n if op is LoraOp.SHRINK else block_n
    return (values["num_stages"] - 1) * rows * block_k * value_bytes


def sizes_text(shape: KernelShape) -> str:
    """Input and output size, and the slices: ``4096>16 x3`` or ``16>4096+1024+1024``.

    For a MoE op these are the sizes of one expert, with ``top_k``: ``768>16, 8 of 128``.
    """
    if len(set(shape.slice_sizes)) > 1:
        return f"{shape.rank}>" + "+".join(map(str, shape.slice_sizes))
    _, outside, inside = matmul_sizes(shape)
    text = f"{inside}>{outside}" + (f" x{shape.num_slices}" if shape.num_slices > 1 else "")
    return f"{text}, {shape.top_k} of {shape.num_experts}" if shape.op.is_moe else text
