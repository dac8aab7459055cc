"""What a configuration means to the device: figures by which configurations of any shape compare.

Raw parameters do not carry over from shape to shape: 16 parts of k are few for a long k and many
for a short one. How many waves of thread blocks there are, how long each block loops and how much
memory it keeps in flight mean the same everywhere. The surrogate sees both.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from autotune.launch.config import KernelConfig
from autotune.launch.shape import DTYPE_BYTES, KernelShape
from autotune.launch.sizes import assigns_naively, launched_rows, matmul_sizes

Floats = npt.NDArray[np.float64]

# Of an H100 SXM (CUDA C++ Programming Guide 13, table "Technical Specifications per Compute
# Capability", 9.0; 132 multiprocessors by the H100 whitepaper). Other devices differ by a factor
# that is nearly the same for every configuration, so that the order of the figures stays.
_MULTIPROCESSORS = 132
_WARPS_PER_MULTIPROCESSOR = 64
_BLOCKS_PER_MULTIPROCESSOR = 32
_SHARED_BYTES_PER_MULTIPROCESSOR = 228 * 1024
_REGISTERS_PER_MULTIPROCESSOR = 65536

#: Registers of a thread besides its accumulators: the median over the shipped recording (H100).
_OTHER_REGISTERS = 48

#: A sum whose parts do not divide k is masked, and Triton 3.6 does not pipeline a masked loop: all
#: ``num_stages`` of such a configuration gave the same binary (177 of 177 recorded on an H100 with
#: vLLM's ``shrink``). That is another kernel, and farther away than a doubling.
_MASKED = 2.4

#: The raw parameters, all but the stages as powers of two, then what follows from them.
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

#: How many of them are raw parameters.
RAW = 7

#: Weight of the figures that are derived, beside 1 for raw parameters (0.35 and 1 did as well).
_DERIVED_WEIGHT = 0.6

#: Accumulators of a thread, as a logarithm to base 2, from which on registers are short, and how
#: much each doubling beyond weighs. A fit to 57 recorded shapes (by marginal likelihood)
#: gave it the largest weight by far. Its weights for the others gained nothing over equal ones.
_REGISTERS_SHORT, _EXCESS_WEIGHT = 5.5, 2.0

_WEIGHTS = np.array(
    [1.0] * RAW
    + [_EXCESS_WEIGHT if name == "register_excess" else _DERIVED_WEIGHT for name in NAMES[RAW:]]
)

#: Weight of a shape's sizes between shapes: what k, slices and the like do to a launch is in the
#: derived figures, so that little is left to them, but for slices by the same fit.
_DEPTH_WEIGHT, _SLICES_WEIGHT = 0.2, 2.5


def features(shape: KernelShape, configs: Sequence[KernelConfig]) -> Floats:
    """Figures of every configuration, (len(configs), len(NAMES)).

    All are logarithms to base 2 but ``num_stages``, so that one step of an axis is about one unit,
    and ``masked``. Stages that the compiler makes nothing of count as 1.

    Args:
        shape: The shape that is launched.
        configs: Its configurations; a parameter that the op does not have counts as 1.
    """
    m, n, k, split, group, warps, stages = (_values(configs, name) for name in NAMES[:RAW])
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
    launched = np.array([launched_rows(shape, int(block)) for block in m])
    slots = (shape.max_loras + 1) * shape.num_slices
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
    """``features`` as points for a surrogate: what follows from the parameters weighs less."""
    points: Floats = raw * _WEIGHTS
    return points


def between_shapes(shape: KernelShape, configs: Sequence[KernelConfig]) -> Floats:
    """Configurations as points that compare with those of other shapes, the sizes among them."""
    depth = matmul_sizes(shape)[2]
    sizes = (_DEPTH_WEIGHT * np.log2(depth), _SLICES_WEIGHT * np.log2(shape.num_slices))
    return np.hstack((scaled(features(shape, configs)), np.tile(sizes, (len(configs), 1))))


def _values(configs: Sequence[KernelConfig], name: str) -> Floats:
    return np.array([getattr(config, name) or 1 for config in configs], dtype=float)


def _products(shape: KernelShape) -> tuple[float, float, int, int]:
    """How many matrix products a launch makes, and (m, n, k) of each; tokens are spread evenly."""
    m, n, k = matmul_sizes(shape)
    if not shape.op.is_moe:
        slices = sum(shape.slice_sizes) / n if shape.slice_sizes else shape.num_slices
        adapters = shape.loras_with_tokens
        return slices * adapters, m / adapters, n, k
    here = shape.num_experts / shape.global_experts  # the share of all devices' experts
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
