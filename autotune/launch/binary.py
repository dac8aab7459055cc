"""Which launches share one compiled kernel.

Triton compiles a kernel anew for every configuration, and also where an integer argument becomes 1,
becomes a multiple of 16, or ceases to be either: it compiles what it knows of the number into the
kernel (``specialize_impl`` in ``triton/runtime/jit.py``, 3.6). So one configuration is up to three
kernels over the batch sizes. Arguments named in ``do_not_specialize`` count by their type alone.

The arguments are those of vLLM's wrappers (``vllm/lora/ops/triton_ops``, 0.22.1 to 0.33.0);
``tests/vllm`` compares this module with the keys that Triton itself makes of them.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterable
from dataclasses import replace

from autotune.launch.config import KernelConfig
from autotune.launch.environment import Target
from autotune.launch.op import LoraOp
from autotune.launch.release import (
    FIRST_UNPIPELINED_RELEASE,
    NEWEST_RELEASE,
    has_pipeline,
    is_since,
    reads_only_block_m,
)
from autotune.launch.shape import KernelShape
from autotune.launch.sizes import (
    SMALLEST_BLOCK,
    assigns_naively,
    is_shrink,
    launched_rows,
)

#: A compiled kernel: equal for two launches that share it.
Binary = Hashable

#: Where the GPU is not known, an H100's compute capability and number of multiprocessors, by which
#: vLLM's one-shot MoE kernel splits its work.
_HOPPER, _MULTIPROCESSORS = (9, 0), 132

#: Triton passes a larger integer as 64 bits.
_LARGEST_32 = 2**31 - 1

#: Triton compiles in that a number, or an address, is a multiple of this.
_DIVISOR = 16

#: The largest rank and the most values, rank by (token, expert) pairs, of vLLM's MoE kernel for
#: the smallest batches (``_fused_moe_lora`` in ``fused_moe_lora_op.py``, 0.33.0).
_SMALL_BATCH_RANK, _SMALL_BATCH_VALUES = 64, 1024


def binary_of(
    shape: KernelShape,
    config: KernelConfig,
    *,
    release: str = NEWEST_RELEASE,
    target: Target | None = None,
) -> Binary:
    """The compiled kernel that a launch needs.

    Layers of different sizes share a dense kernel if their arguments are alike. Of MoE ops only
    launches of one layer are taken to share.

    Args:
        shape: What is launched.
        config: Its configuration. Parameters that vLLM does not read make no difference.
        release: vLLM's version.
        target: The GPU; None for an H100.
    """
    if shape.op is LoraOp.SHRINK:
        return _shrink(shape, config)
    if shape.op is LoraOp.EXPAND:
        capability = _HOPPER if target is None else target.capability
        is_forced = is_since(release, FIRST_UNPIPELINED_RELEASE)
        if is_forced and not has_pipeline(shape.op, capability):
            config = replace(config, num_stages=1)
        return _expand(shape, config)
    if reads_only_block_m(shape, release):
        multiprocessors = _MULTIPROCESSORS if target is None else target.multiprocessors
        return _one_shot(shape, config.block_m, multiprocessors)
    return _fused_moe(shape, config)


def specialised(number: int) -> str:
    """What Triton compiles in of an integer argument."""
    if number == 1:
        return "1"
    width = "i32" if number <= _LARGEST_32 else "i64"
    return width if number % _DIVISOR else f"{width} of 16"


def _all(numbers: Iterable[int]) -> tuple[str, ...]:
    return tuple(map(specialised, numbers))


# --------------------------------------------------------------------------- dense


def _shrink(shape: KernelShape, config: KernelConfig) -> Binary:
    m, n, k = shape.num_tokens, shape.rank, shape.hidden_size
    even_k = k % (config.block_k * (config.split_k or 1)) == 0
    numbers = _all((m, n, k, n * k, m * n))
    flags = (shape.num_slices, even_k, shape.dual_stream)
    return shape.op, shape.dtype, flags, numbers, config


def _expand(shape: KernelShape, config: KernelConfig) -> Binary:
    m, n, k = shape.num_tokens, shape.hidden_size, shape.rank
    are_equal = len(set(shape.slice_sizes)) == 1
    of_slices = (n * k,) if are_equal else ()  # else tables in memory
    numbers = _all((m, n, k, m * k, sum(shape.slice_sizes), *of_slices))
    even_k = k % config.block_k == 0
    flags = (shape.num_slices, are_equal, shape.add_inputs, even_k, shape.dual_stream)
    return shape.op, shape.dtype, flags, numbers, config


# --------------------------------------------------------------------------- mixtures of experts


def _fused_moe(shape: KernelShape, config: KernelConfig) -> Binary:
    """The kernel of one op. Numbers that follow from the batch are not specialised."""
    if not is_shrink(shape.op):
        config = replace(config, split_k=1)
    pairs = shape.num_tokens * shape.top_k
    sorted_rows = shape.max_loras * launched_rows(shape, config.block_m)
    wide = tuple(
        number > _LARGEST_32
        for number in (
            sorted_rows,
            sorted_rows * shape.rank,
            pairs * max(shape.rank, shape.intermediate_size),
            shape.num_tokens * shape.hidden_size,
        )
    )
    return shape.without_batch, assigns_naively(shape), wide, config


def _one_shot(shape: KernelShape, block_m: int, multiprocessors: int) -> Binary:
    """The one kernel for a shrink and the expand after it, whose blocks vLLM chooses itself."""
    is_w13 = shape.op in {LoraOp.W13_SHRINK, LoraOp.W13_EXPAND}
    layer = replace(
        shape.without_batch, op=LoraOp.W13_SHRINK if is_w13 else LoraOp.W2_SHRINK, slice_sizes=()
    )
    outer, inner = shape.hidden_size, shape.intermediate_size
    k, n = (outer, inner) if is_w13 else (inner, outer)
    pairs, is_naive = shape.num_tokens * shape.top_k, assigns_naively(shape)
    is_small = shape.rank <= _SMALL_BATCH_RANK and pairs * shape.rank <= _SMALL_BATCH_VALUES
    if is_naive and is_small:
        return layer, "small batch", _small_batch(shape, n, multiprocessors)
    rows = pairs if is_naive else launched_rows(shape, block_m)
    block_m = SMALLEST_BLOCK if is_naive else block_m
    blocks = pairs if is_naive else -(-rows // block_m)
    slots = 1 if is_naive else shape.lora_slots
    split = _columns_split(blocks * shape.num_slices * slots, k=k, n=n, of=multiprocessors)
    strides = (0, 0) if is_naive else (rows, blocks)
    block_k = 128 if k >= 256 or pairs >= 16 * shape.num_experts else 64
    return layer, is_naive, block_m, block_k, split, _all((pairs, *strides))


def _columns_split(programs: int, *, k: int, n: int, of: int) -> int:
    """``NPID_FACTOR`` of ``_run_fused_moe_lora_one_shot``: parts that the columns are split into.

    Args:
        programs: Thread blocks without a split.
        k: Size of the shrink's input.
        n: Size of a slice of the expand's output.
        of: The GPU's multiprocessors.
    """
    if programs >= int(1.5 * of):
        return 1
    wanted = max(1, min(16, (2 * of + programs - 1) // max(programs, 1)))
    affordable = max(1, int(1.5 / max(k / max(k + n, 1), 1e-3)) + 1)
    return max(1, min(wanted, affordable, max(1, n // 128)))


def _small_batch(shape: KernelShape, n: int, multiprocessors: int) -> tuple[str, ...]:
    """The numbers of ``_run_fused_moe_lora_small_batch`` that follow from the batch."""
    tiles = -(-n // 128)
    slices = shape.num_tokens * shape.top_k * shape.num_slices
    programs = max(1, 2 * multiprocessors)
    each = 1 if slices * tiles <= programs else min(-(-slices * tiles // programs), tiles)
    chunks = -(-tiles // each)
    return _all((slices * chunks, slices, each, chunks))
