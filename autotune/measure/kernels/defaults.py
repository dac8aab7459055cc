"""The configuration that vLLM launches without a tuned file."""

from __future__ import annotations

from typing import TYPE_CHECKING

from autotune.launch.config import KernelConfig
from autotune.launch.op import MOE_DEFAULTS, LoraOp
from autotune.launch.sizes import SMALLEST_BLOCK, is_shrink, next_power_of_two

if TYPE_CHECKING:
    from autotune.launch.shape import KernelShape


def default_config(shape: KernelShape) -> KernelConfig:
    """The default of vLLM 0.33.0 (``get_lora_op_configs`` with no folder set) for a shape."""
    if shape.op.is_moe:
        return _moe_default(shape)
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


def _moe_default(shape: KernelShape) -> KernelConfig:
    """What vLLM takes for an empty MoE entry, with tiles along the rank no larger than it.

    vLLM takes these where a folder of tuned files is set that has no file for the MoE ops. With no
    folder set it takes the base layer's own tuned file, which is not known here.
    """
    block, rank = dict(MOE_DEFAULTS), next_power_of_two(shape.rank)
    if is_shrink(shape.op):
        block["block_n"] = min(block["block_n"], rank)
    else:
        block["block_k"] = max(SMALLEST_BLOCK, min(block["block_k"], rank))
    return KernelConfig(**block)
