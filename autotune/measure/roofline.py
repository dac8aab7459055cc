"""The least time of a launch on a device, from the bytes and operations that it needs."""

from __future__ import annotations

import math

from autotune.launch.op import LoraOp
from autotune.launch.shape import KernelShape
from autotune.measure.kernels.inputs import weight_bytes_touched
from autotune.measure.kernels.layout import adds_to_output, layout, num_rows
from autotune.measure.measurement import Ceilings


def bytes_moved(shape: KernelShape, *, pair: bool = False) -> int:
    """Bytes that one launch must move: each input is read once, each output written once.

    Weights count only for adapters that have a token, and in a mixture of experts only for the
    experts that these tokens go to. An expand that adds to its output also reads the output.

    Args:
        shape: The shape.
        pair: MoE ops: whether one launch does a shrink and its expand.
    """
    sizes = layout(shape, pair=pair)
    x_bytes = math.prod(sizes.x) * sizes.x_dtype.itemsize
    out_bytes = math.prod(sizes.out) * sizes.out_dtype.itemsize
    times = 2 if adds_to_output(shape, pair=pair) else 1
    if shape.op.is_moe:  # rows of experts on other devices are not touched
        out_bytes = int(out_bytes * _share_here(shape))
        reads_tokens = pair or shape.op is LoraOp.W13_SHRINK
        x_bytes = int(x_bytes * (1 if reads_tokens else _share_here(shape)))
    return x_bytes + weight_bytes_touched(shape, pair=pair) + times * out_bytes


def _share_here(shape: KernelShape) -> float:
    """Share of a MoE op's rows that this device works on, if all experts get equally many."""
    return shape.num_experts / shape.global_experts


def flops(shape: KernelShape, *, pair: bool = False) -> int:
    """Floating-point operations of one launch: 2·n·k for each row of each slice."""
    rows = num_rows(shape) * (_share_here(shape) if shape.op.is_moe else 1)
    return int(sum(2 * rows * n * k for *_, n, k in layout(shape, pair=pair).weights))


def floor_us(shape: KernelShape, ceilings: Ceilings, *, pair: bool = False) -> float:
    """The roofline's time of one launch, microseconds: the longer of moving and multiplying.

    After Williams, Waterman and Patterson, "Roofline", CACM 52(4), 2009. A launch can be faster if
    its activations are still in the L2 cache.

    Args:
        shape: The shape.
        ceilings: What the device was measured to reach.
        pair: As for ``bytes_moved``.
    """
    moving_s = bytes_moved(shape, pair=pair) / ceilings.copy_bytes_per_s
    multiplying_s = flops(shape, pair=pair) / ceilings.matmul_flops_per_s
    return max(moving_s, multiplying_s) * 1e6
