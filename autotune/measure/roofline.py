"""The least time that a launch can take on a device: from what it must move and multiply."""

from __future__ import annotations

import math

from autotune.launch.op import LoraOp
from autotune.launch.shape import KernelShape
from autotune.measure.kernels.inputs import weight_bytes_touched
from autotune.measure.kernels.layout import adds_to_output, layout, num_rows
from autotune.measure.measurement import Ceilings


def bytes_moved(shape: KernelShape, *, pair: bool = False) -> int:
    """Bytes that one launch must move: each input is read once, each output written once.

    Weights count for the adapters, and of a mixture for their experts, that have a token. An
    ``expand`` that adds to its output reads it first.

    Args:
        shape: The shape.
        pair: MoE ops: whether it is one launch for a shrink and its expand.
    """
    sizes = layout(shape, pair=pair)
    x_bytes = math.prod(sizes.x) * sizes.x_dtype.itemsize
    out_bytes = math.prod(sizes.out) * sizes.out_dtype.itemsize
    times = 2 if pair or adds_to_output(shape) else 1
    if shape.op.is_moe:  # of experts on other devices neither is touched
        out_bytes = int(out_bytes * _share_here(shape))
        reads_tokens = pair or shape.op is LoraOp.W13_SHRINK
        x_bytes = int(x_bytes * (1 if reads_tokens else _share_here(shape)))
    return x_bytes + weight_bytes_touched(shape, pair=pair) + times * out_bytes


def _share_here(shape: KernelShape) -> float:
    """The share of a MoE op's rows that is on this device where experts are alike."""
    return shape.num_experts / shape.global_experts


def flops(shape: KernelShape, *, pair: bool = False) -> int:
    """Floating-point operations of one launch: 2 n k for each row of each slice."""
    rows = num_rows(shape) * (_share_here(shape) if shape.op.is_moe else 1)
    return int(sum(2 * rows * n * k for *_, n, k in layout(shape, pair=pair).weights))


def floor_us(shape: KernelShape, ceilings: Ceilings, *, pair: bool = False) -> float:
    """The roofline's time of one launch, microseconds: moving or multiplying, what takes longer.

    After Williams, Waterman and Patterson, "Roofline", CACM 52(4), 2009. A launch can come in below
    it where its activations were still in the L2 cache.

    Args:
        shape: The shape.
        ceilings: What the device was measured to reach.
        pair: As for ``bytes_moved``.
    """
    moving_s = bytes_moved(shape, pair=pair) / ceilings.copy_bytes_per_s
    multiplying_s = flops(shape, pair=pair) / ceilings.matmul_flops_per_s
    return max(moving_s, multiplying_s) * 1e6
