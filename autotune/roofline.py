"""The least time that a launch can take on a device: from what it must move and multiply."""

from __future__ import annotations

from autotune.kernels.inputs import weight_bytes_touched, weight_sizes
from autotune.measure.protocol import Ceilings
from autotune.ops import LoraOp
from autotune.shapes import DTYPE_BYTES, KernelShape

#: What lies between shrink and expand is float32, whatever the weights are.
_FLOAT32_BYTES = 4


def bytes_moved(shape: KernelShape) -> int:
    """Bytes that one launch must move: each input is read once, each output written once.

    Weights count for the adapters that have a token. An ``expand`` that adds to its output reads it
    first.
    """
    between = shape.num_slices * shape.num_tokens * shape.rank * _FLOAT32_BYTES
    dtype_bytes = DTYPE_BYTES[shape.dtype]
    if shape.op is LoraOp.SHRINK:
        outer = shape.num_tokens * shape.hidden_size * dtype_bytes
    else:
        times = 2 if shape.add_inputs else 1
        outer = shape.num_tokens * sum(shape.slice_sizes) * dtype_bytes * times
    return outer + weight_bytes_touched(shape) + between


def flops(shape: KernelShape) -> int:
    """Floating-point operations of one launch: 2 m n k for each slice."""
    return sum(2 * shape.num_tokens * n * k for _, n, k in weight_sizes(shape))


def floor_us(shape: KernelShape, ceilings: Ceilings) -> float:
    """The roofline's time of one launch, microseconds: moving or multiplying, what takes longer.

    After Williams, Waterman and Patterson, "Roofline", CACM 52(4), 2009. A launch can come in below
    it where its activations were still in the L2 cache.

    Args:
        shape: The shape.
        ceilings: What the device was measured to reach.
    """
    moving_s = bytes_moved(shape) / ceilings.copy_bytes_per_s
    multiplying_s = flops(shape) / ceilings.matmul_flops_per_s
    return max(moving_s, multiplying_s) * 1e6
