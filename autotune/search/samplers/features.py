"""Figures that say what a configuration means to the device, comparable between shapes.

Raw parameters do not mean the same for every shape: 16 parts of k are few for a long k and many for
a short one. The number of waves of thread blocks, the steps of each block's loop and the memory
that it keeps in flight do mean the same. The surrogate sees both kinds.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import numpy.typing as npt

from autotune.launch.shape import DTYPE_BYTES, KernelShape
from autotune.launch.sizes import assigns_naively, launched_rows, matmul_sizes

Floats = npt.NDArray[np.float64]

# Limits of an H100 SXM (CUDA C++ Programming Guide 13, table "Technical Specifications per Compute
# Capability", 9.0; 132 multiprocessors by the H100 whitepaper). On other devices the figures change
# by nearly the same factor for every configuration, so their order stays.
_MULTIPROCESSORS = 132
_WARPS_PER_MULTIPROCESSOR = 64
_BLOCKS_PER_MULTIPROCESSOR = 32
_SHARED_BYTES_PER_MULTIPROCESSOR = 228 * 1024
_REGISTERS_PER_MULTIPROCESSOR = 65536

#: Registers of a thread beside its accumulators: the median over the shipped recording (H100).
_OTHER_REGISTERS = 48

#: The figure ``masked``, in units of one axis step. Where block_k times split_k does not divide k,
#: the loop is masked, and Triton 3.6 does not pipeline it: all values of ``num_stages`` then gave
#: the same binary (177 of 177 recorded on an H100 with vLLM's ``shrink``). A masked loop counts as
#: farther away than a doubled block.
_MASKED = 2.4

#: The names of all figures: first the raw parameters, then the figures derived from them.
NAMES = (
    "block_m",
    "block_n",
    "block_k",
    "split_k",
    "group_size_m",
    "num_warps",
    "num_stages",
    "accumulators",
    "tile_bytes_per_thread",
    "shared_bytes",
    "steps",
    "blocks",
    "waves",
    "wave_tail",
    "bytes_in_flight",
    "bytes_loaded",
    "row_padding",
    "idle_blocks",
    "resident_warps",
    "column_padding",
    "register_excess",
    "masked",
)

#: How many of the figures are raw parameters.
RAW = 7

#: Weight of the derived figures; raw parameters weigh 1. Weights of 0.35 and 1 did as well.
_DERIVED_WEIGHT = 0.6

#: Registers run short above 2 to the power of the first number accumulators per thread. The second
#: is the weight of each doubling beyond. A fit to 57 recorded shapes (by marginal likelihood) gave
#: this figure the largest weight by far; its weights for the others were no better than equal ones.
_REGISTERS_SHORT, _EXCESS_WEIGHT = 5.5, 2.0

_WEIGHTS = np.array(
    [1.0] * RAW
    + [_EXCESS_WEIGHT if name == "register_excess" else _DERIVED_WEIGHT for name in NAMES[RAW:]]
)

#: Weights of k and of the number of slices where shapes are compared. The derived figures already
#: contain most of what sizes do to a launch, so k weighs little; the same fit gave slices more.
_DEPTH_WEIGHT, _SLICES_WEIGHT = 0.2, 2.5


def features(shape: KernelShape, values: Mapping[str, Floats]) -> Floats:
    """Figures of every configuration, (configurations, len(NAMES)).

    All but ``num_stages`` and ``masked`` are logarithms to base 2, so that one step of an axis is
    about one unit. Stages that the compiler does not use count as 1.

    Args:
        shape: The shape that is launched.
        values: Those of every parameter, each (configurations,), as ``listing.columns`` has them.
    """
    m, n, k, split, group, warps, stages = (values[name] for name in NAMES[:RAW])
    problems, rows, columns, depth = _products(shape)
    masked = depth % (k * split) != 0
    stages = np.where(masked, 1.0, stages)
    threads = 32 * warps
    row_tiles, column_tiles = np.ceil(rows / m), np.ceil(columns / n)
    steps = np.ceil(depth / (k * split))
    blocks = problems * row_tiles * column_tiles * split
    step_bytes = (m + n) * k * DTYPE_BYTES[shape.dtype]
    shared = step_bytes * stages
    accumulators = m * n / threads
    resident = _resident_blocks(warps, shared, accumulators)
    waves = blocks / (_MULTIPROCESSORS * resident)
    busy = np.minimum(resident, np.ceil(blocks / _MULTIPROCESSORS))
    sides, which = np.unique(m, return_inverse=True)
    launched = np.array([launched_rows(shape, int(side)) for side in sides])[which]
    slots = shape.lora_slots * shape.num_slices
    grid = slots * np.ceil(launched / m) * column_tiles * split
    derived = (
        accumulators,
        step_bytes / threads,
        shared,
        steps,
        blocks,
        waves,
        np.ceil(waves) / waves,
        busy * shared,
        blocks * steps * step_bytes,
        row_tiles * m / rows,
        np.maximum(grid / blocks, 1.0),
        resident * warps,
        n / columns,
        np.maximum(accumulators / 2.0**_REGISTERS_SHORT, 1.0),
    )
    logs = (np.log2(each) for each in derived)
    raw = (np.log2(each) for each in (m, n, k, split, group, warps))
    return np.stack((*raw, stages, *logs, _MASKED * masked), axis=1)


def scaled(raw: Floats) -> Floats:
    """``features`` as points for a surrogate, each figure times its weight."""
    points: Floats = raw * _WEIGHTS
    return points


def between_shapes(shape: KernelShape, raw: Floats) -> Floats:
    """A shape's ``features`` as points to compare between shapes, which also hold sizes."""
    depth = matmul_sizes(shape)[2]
    sizes = (_DEPTH_WEIGHT * np.log2(depth), _SLICES_WEIGHT * np.log2(shape.num_slices))
    return np.hstack((scaled(raw), np.tile(sizes, (len(raw), 1))))


def _products(shape: KernelShape) -> tuple[float, float, int, int]:
    """How many matrix products a launch makes, and (m, n, k) of each with tokens spread evenly."""
    m, n, k = matmul_sizes(shape)
    if not shape.op.is_moe:
        slices = sum(shape.slice_sizes) / n if shape.slice_sizes else shape.num_slices
        adapters = shape.loras_with_tokens
        return slices * adapters, m / adapters, n, k
    here = shape.num_experts / shape.global_experts  # the share of experts on this device
    pairs = max(1.0, shape.num_tokens * shape.top_k * here)
    experts = int(shape.routing[4:]) if shape.routing.startswith("hit=") else shape.num_experts
    products = pairs if assigns_naively(shape) else min(pairs, experts * shape.loras_with_tokens)
    return products * shape.num_slices, pairs / products, n, k


def _resident_blocks(warps: Floats, shared_bytes: Floats, accumulators: Floats) -> Floats:
    """Thread blocks that one multiprocessor holds at a time, at least one."""
    registers = 32 * warps * np.minimum(accumulators + _OTHER_REGISTERS, 255)
    limits = (
        np.full_like(warps, _BLOCKS_PER_MULTIPROCESSOR),
        _WARPS_PER_MULTIPROCESSOR // warps,
        _SHARED_BYTES_PER_MULTIPROCESSOR // shared_bytes,
        _REGISTERS_PER_MULTIPROCESSOR // registers,
    )
    resident: Floats = np.maximum(np.min(limits, axis=0), 1.0)
    return resident
