"""The builtin kernel provider: our own kernels, modelled on vLLM's."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

from autotune.launch.op import LoraOp
from autotune.launch.release import has_pipeline
from autotune.launch.sizes import is_shrink
from autotune.measure.kernels import ahead, expand, fused_moe, shrink
from autotune.measure.kernels._base import CompiledKernel, KernelProvider
from autotune.measure.kernels.defaults import default_config
from autotune.measure.kernels.inputs import operands_without_tensors
from autotune.measure.kernels.moe_inputs import moe_operands_without_tensors

if TYPE_CHECKING:
    from collections.abc import Mapping

    from autotune.launch.config import KernelConfig
    from autotune.launch.environment import Target
    from autotune.launch.shape import KernelShape
    from autotune.measure.kernels.inputs import Inputs


class BuiltinProvider(KernelProvider):
    """Our own kernels. Change ``version`` whenever their results or their speed change."""

    name = "builtin"
    version = "1"

    def default(self, shape: KernelShape) -> KernelConfig:
        """What vLLM 0.33.0 launches by default."""
        return default_config(shape)

    def forced(self, shape: KernelShape, target: Target) -> Mapping[str, int]:
        """``num_stages = 1`` for ``expand`` on Hopper, ``split_k = 1`` for the MoE expands."""
        return _forced(shape, target.capability)

    def compile(self, shape: KernelShape, config: KernelConfig, target: Target) -> CompiledKernel:
        """Compile into Triton's cache; the process cannot launch afterwards."""
        ahead.compile_for(target.capability)
        launched = replace(config, **self.forced(shape, target))
        kernel, grid, arguments = _call(shape, launched, target.capability)
        return ahead.describe(kernel.warmup(grid=grid, **arguments), grid)

    def launch(self, inputs: Inputs, config: KernelConfig, weight_set: int) -> None:
        """Enqueue the op once on the current stream."""
        shape = inputs.shape
        config = replace(config, **_forced(shape, inputs.capability))
        if shape.op.is_moe:
            fused_moe.launch(inputs, config, weight_set)
        elif shape.op is LoraOp.SHRINK:
            shrink.launch(inputs, config, weight_set)
        else:
            expand.launch(inputs, config, weight_set)


def _forced(shape: KernelShape, capability: tuple[int, int]) -> dict[str, int]:
    if not has_pipeline(shape.op, capability):
        return {"num_stages": 1}
    if shape.op.is_moe and not is_shrink(shape.op):
        return {"split_k": 1}
    return {}


def _call(
    shape: KernelShape, config: KernelConfig, capability: tuple[int, int]
) -> tuple[Any, tuple[int, int, int], dict[str, Any]]:
    """The kernel, the grid and the arguments that a configuration is compiled with."""
    if shape.op.is_moe:
        stand_ins = moe_operands_without_tensors(shape)
        arguments = fused_moe.arguments(shape, config, *stand_ins)
        return fused_moe.fused_moe_kernel, fused_moe.grid(shape, config), arguments
    operands = operands_without_tensors(shape)
    if shape.op is LoraOp.SHRINK:
        # Triton compiles one kernel for all floats, so the value of the scaling does not matter.
        arguments = shrink.arguments(shape, config, operands, capability, scaling=1.0)
        return shrink.shrink_kernel, shrink.grid(shape, config), arguments
    arguments = expand.arguments(shape, config, operands, capability)
    return expand.expand_kernel, expand.grid(shape, config), arguments
