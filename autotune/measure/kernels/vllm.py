"""The vllm kernel provider: the installed vLLM's own kernels, launched by its own wrappers.

Differences between releases are not listed here. Signatures are read from the installed vLLM, and
trial calls show what its wrappers make of a configuration.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from functools import cached_property
from typing import TYPE_CHECKING, Any

from autotune.errors import KernelsUnusable
from autotune.launch.config import KernelConfig
from autotune.launch.op import LoraOp
from autotune.launch.release import parameters_read, reads_only_block_m
from autotune.measure.kernels import ahead
from autotune.measure.kernels._base import CompiledKernel, KernelProvider
from autotune.measure.kernels.inputs import inputs_without_memory
from autotune.measure.kernels.vllm_dense import DenseOp
from autotune.measure.kernels.vllm_moe import MoeOp
from autotune.measure.kernels.vllm_pair import MoePair
from autotune.measure.kernels.vllm_parts import (
    KernelStandIn,
    Launcher,
    answers_for,
    import_vllm,
    part,
    replaced,
)

if TYPE_CHECKING:
    from autotune.launch.environment import Target
    from autotune.launch.shape import KernelShape
    from autotune.measure.kernels.inputs import Inputs

#: Two configurations that differ in every parameter. A parameter that a kernel gets the same value
#: of with both is set by vLLM itself.
_PROBES = (
    {"block_m": 16, "block_n": 16, "block_k": 16, "split_k": 2, "group_size_m": 4}
    | {"num_warps": 2, "num_stages": 2, "num_ctas": 1},
    {"block_m": 32, "block_n": 32, "block_k": 32, "split_k": 4, "group_size_m": 8}
    | {"num_warps": 4, "num_stages": 3, "num_ctas": 2},
)


class VllmProvider(KernelProvider):
    """The kernels of the installed vLLM; ``version`` is its release."""

    name = "vllm"

    def __init__(self) -> None:
        """Import vLLM's kernels.

        Raises:
            KernelsUnusable: vLLM is not installed, or the kernels of its release cannot be driven.
        """
        self.version = import_vllm()
        self._lookup = part("utils")
        # The dense ops are in every release. Those of MoE are not, so they are made when needed.
        self._ops: dict[LoraOp, DenseOp | MoeOp] = {
            op: DenseOp(op) for op in (LoraOp.SHRINK, LoraOp.EXPAND)
        }
        if getattr(self._lookup, "is_batch_invariant", False):
            raise KernelsUnusable(
                "VLLM_BATCH_INVARIANT is set, and with it vLLM reads no tuned file; unset it"
            )
        self._adopted: Inputs | None = None

    def default(self, shape: KernelShape) -> KernelConfig:
        """The configuration that this vLLM takes when no folder of tuned files is set."""
        op = shape.op
        ask: Callable[..., dict[str, Any]] = inspect.unwrap(self._lookup.get_lora_op_configs)
        with replaced(self._lookup, load_lora_op_config=lambda *_: None):
            answer = ask(
                op_type=op.value,
                max_loras=shape.lookup_key.max_loras,
                batch=shape.num_tokens,
                hidden_size=shape.hidden_size,
                rank=shape.rank,
                num_slices=shape.num_slices,
                add_inputs=shape.add_inputs if op is LoraOp.EXPAND else None,
                **({"moe_intermediate_size": shape.intermediate_size} if op.is_moe else {}),
            )
        known = {name: answer[name] for name in op.parameters if name in answer}
        return KernelConfig.from_mapping(op, known)

    def forced(self, shape: KernelShape, target: Target) -> Mapping[str, int]:
        """Parameters that vLLM sets itself, whatever a configuration says.

        Parameters that one kernel for shrink and expand does not read have the default's value.

        Raises:
            KernelsUnusable: vLLM changes a parameter, and not always to the same value.
        """
        if self.runs_pair(shape):
            read = parameters_read(shape, self.version)
            default = self.default(shape).as_dict()
            return {name: value for name, value in default.items() if name not in read}
        forced = {}
        asked = [
            KernelConfig.from_mapping(shape.op, {name: one[name] for name in shape.op.parameters})
            for one in _PROBES
        ]
        launched = [self._launched(shape, config, target) for config in asked]
        for name in shape.op.parameters:
            wanted, got = ([getattr(one, name) for one in each] for each in (asked, launched))
            if got[0] == got[1]:
                forced[name] = got[0]
            elif got != wanted:
                raise KernelsUnusable(
                    f"vLLM {self.version} launches {shape.op.value} with {name} {got} where "
                    f"{wanted} is asked for; autotune does not know how to search that"
                )
        return forced

    def compile(self, shape: KernelShape, config: KernelConfig, target: Target) -> CompiledKernel:
        """Compile into Triton's cache; the process cannot launch afterwards."""
        ahead.compile_for(target.capability)
        described = []

        def warm_up(
            kernel: Any,  # noqa: ANN401 - triton ships no types
            grid: tuple[int, ...],
            arguments: tuple[Any, ...],
            named: dict[str, Any],
        ) -> None:
            compiled = kernel.warmup(*arguments, grid=grid, **named)
            described.append(ahead.describe(compiled, grid))

        self._call_as_on(target, self._without_memory(shape), config, warm_up)
        return described[0]

    def launch(self, inputs: Inputs, config: KernelConfig, weight_set: int) -> None:
        """Enqueue the op once on the current stream, by vLLM's wrapper."""
        op = self._op_for(inputs)
        self._adopt(op, inputs)
        op.call(inputs, config, weight_set)

    def launch_pair(
        self, inputs: Inputs, shrink: KernelConfig, expand: KernelConfig, weight_set: int
    ) -> None:
        """Enqueue a MoE shrink and the expand after it on the current stream, as vLLM does.

        Args:
            inputs: Inputs of either of the two shapes, made with ``pair=True``.
            shrink: The shrink's configuration.
            expand: The expand's configuration, with the same ``block_m``.
            weight_set: Which of the rotating weight sets is read.

        Raises:
            Exception: Whatever the launcher raises, such as ``OutOfResources``.
        """
        pair = self._pair
        self._adopt(pair, inputs)
        pair.call_both(inputs, shrink, expand, weight_set)

    def collect(self, inputs: Inputs, config: KernelConfig) -> None:
        """Copy the result of the last launch to ``inputs.out``, in the order of the rows."""
        self._op_for(inputs).collect(inputs, config)

    def runs_pair(self, shape: KernelShape) -> bool:
        """Whether this vLLM launches one kernel for the shape's shrink and expand."""
        return reads_only_block_m(shape, self.version)

    # ----------------------------------------------------------------- inside

    def _op_for(self, inputs: Inputs) -> DenseOp | MoeOp | MoePair:
        return self._pair if inputs.pair else self._op(inputs.shape.op)

    def _op(self, op: LoraOp) -> DenseOp | MoeOp:
        if op not in self._ops:
            self._ops[op] = MoeOp(op)
        return self._ops[op]

    @cached_property
    def _pair(self) -> MoePair:
        return MoePair()

    def _adopt(self, op: DenseOp | MoeOp | MoePair, inputs: Inputs) -> None:
        """Make vLLM's tables for these inputs, unless the present tables are theirs."""
        if self._adopted is not inputs:
            op.adopt(inputs)
            self._adopted = inputs

    def _without_memory(self, shape: KernelShape) -> Inputs:
        return inputs_without_memory(shape, pair=self.runs_pair(shape))

    def _launched(self, shape: KernelShape, config: KernelConfig, target: Target) -> KernelConfig:
        """The configuration that vLLM's wrapper launches for ``config``."""
        op = self._op(shape.op)
        launches: list[dict[str, Any]] = []
        self._call_as_on(
            target,
            inputs_without_memory(shape),
            config,
            lambda kernel, _grid, arguments, named: launches.append(
                dict(zip(kernel.arg_names, arguments, strict=False)) | named
            ),
        )
        names = {name: op.parameter_names.get(name, name) for name in shape.op.parameters}
        got = {name: launches[0][its] for name, its in names.items()}
        return KernelConfig.from_mapping(shape.op, got)

    def _call_as_on(
        self,
        target: Target,
        inputs: Inputs,
        config: KernelConfig,
        launcher: Launcher,
    ) -> None:
        """Run vLLM's wrapper as if on ``target``; ``launcher`` is called in place of the launch."""
        op = self._op_for(inputs)
        stand_ins = answers_for(target) | {
            name: KernelStandIn(kernel, launcher) for name, kernel in op.kernels.items()
        }
        op.forget()  # tensors without memory all have address 0, so tables would be mixed up
        self._adopted = None
        self._forget_platform()
        with ExitStack() as stack:
            for module in (self._lookup, op.module):
                found = {name: each for name, each in stand_ins.items() if hasattr(module, name)}
                stack.enter_context(replaced(module, **found))
            op.call(inputs, config, 0)
        self._forget_platform()
        op.forget()

    def _forget_platform(self) -> None:
        """Drop what vLLM has cached about the device."""
        for name in ("supports_pdl", "supports_tma"):
            if hasattr(self._lookup, name):
                getattr(self._lookup, name).cache_clear()
