"""What vLLM launches where no tuned file is given."""

from __future__ import annotations

from typing import TYPE_CHECKING

from autotune.ops import LoraOp
from autotune.space import KernelConfig

if TYPE_CHECKING:
    from autotune.shapes import KernelShape


def default_config(shape: KernelShape) -> KernelConfig:
    """The default of vLLM 0.33.0 (``get_lora_op_configs`` with no folder set) for a shape."""
    if shape.op is LoraOp.SHRINK:
        small = shape.num_tokens < 128
        return KernelConfig(
            block_m=32,
            block_n=16,
            block_k=256 if small else 32,
            split_k=64 if small else 8,
            group_size_m=8,
            num_warps=4,
            num_stages=2,
            num_ctas=1,
        )
    return KernelConfig(
        block_m=64,
        block_n=64 if shape.num_slices > 1 else 128,
        block_k=32,
        num_warps=4,
        num_stages=2,
        num_ctas=1,
    )
