"""The vllm kernel provider: the installed vLLM's own kernels, launched by its own wrappers.

A candidate configuration reaches a wrapper in place of the answer of ``get_lora_op_configs``, which
the wrapper asks for one; nothing else of the way to the kernel is changed. That has held from vLLM
0.11.1 to 0.33.0 (``vllm/lora/ops/triton_ops/lora_shrink_op.py`` and ``lora_expand_op.py``). Of what
differs between releases nothing is written down here: signatures are read, and what becomes of a
configuration is seen by trying.
"""

from __future__ import annotations

import importlib
import inspect
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from types import ModuleType
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from triton.runtime.jit import KernelInterface

from autotune.errors import KernelsUnusable
from autotune.kernels import ahead
from autotune.kernels._base import CompiledKernel, KernelProvider
from autotune.kernels.inputs import inputs_without_memory
from autotune.ops import LoraOp
from autotune.space import KernelConfig

if TYPE_CHECKING:
    from autotune.kernels.inputs import Inputs
    from autotune.shapes import KernelShape

_PACKAGE = "vllm.lora.ops.triton_ops"


class _Names(NamedTuple):
    """What vLLM calls the parts of one op.

    Attributes:
        module: Where the wrapper is.
        wrapper: The function that launches the kernel.
        kernel: The Triton kernel, as the wrapper finds it in its module.
        weights: The wrapper's parameter for them.
        table: The function that makes the weights' table of addresses.
        tables: The dictionary in which these are kept, by address.
        own: Parameters of this op's wrapper that the other has not.
    """

    module: str
    wrapper: str
    kernel: str
    weights: str
    table: str
    tables: str
    own: tuple[str, ...]


_OPS = {
    LoraOp.SHRINK: _Names(
        "lora_shrink_op",
        "_lora_shrink",
        "_lora_shrink_kernel",
        "lora_a_weights",
        "_get_lora_a_ptr",
        "_LORA_A_PTR_DICT",
        ("scaling",),
    ),
    LoraOp.EXPAND: _Names(
        "lora_expand_op",
        "_lora_expand",
        "_lora_expand_kernel",
        "lora_b_weights",
        "_get_lora_b_ptr",
        "_LORA_B_PTR_DICT",
        ("offset_start", "add_inputs"),
    ),
}

#: Parameters that both wrappers have, the last one from 0.15 on.
_COMMON = (
    "inputs",
    "output_tensor",
    "token_lora_mapping",
    "token_indices_sorted_by_lora_ids",
    "num_tokens_per_lora",
    "lora_token_start_loc",
    "lora_ids",
    "no_lora_flag_cpu",
    "num_active_loras",
)

#: What the kernels call the parameters that they do not call as vLLM's files do.
_KERNEL_NAMES = {
    name: name.upper() for name in ("block_m", "block_n", "block_k", "split_k", "group_size_m")
}

#: Two configurations that differ in every parameter: what a kernel is launched with in spite of
#: that, vLLM has set itself.
_PROBES = (
    {"block_m": 16, "block_n": 16, "block_k": 16, "split_k": 2, "group_size_m": 4}
    | {"num_warps": 2, "num_stages": 2, "num_ctas": 1},
    {"block_m": 32, "block_n": 32, "block_k": 32, "split_k": 4, "group_size_m": 8}
    | {"num_warps": 4, "num_stages": 3, "num_ctas": 2},
)

#: Stands in for a kernel: is given the grid, the positional and the named arguments of a launch.
_Launcher = Callable[[tuple[int, ...], tuple[Any, ...], dict[str, Any]], None]


class VllmProvider(KernelProvider):
    """The kernels of the vLLM that is installed; ``version`` is its release."""

    name = "vllm"

    def __init__(self) -> None:
        """Import vLLM's kernels.

        Raises:
            KernelsUnusable: There is no vLLM, or this release's kernels cannot be driven.
        """
        self.version = _import_vllm()
        self._lookup = _part(f"{_PACKAGE}.utils")
        self._ops = {op: _Op(names) for op, names in _OPS.items()}
        if getattr(self._lookup, "is_batch_invariant", False):
            raise KernelsUnusable(
                "VLLM_BATCH_INVARIANT is set, and with it vLLM reads no tuned file; unset it"
            )
        self._adopted: Inputs | None = None

    def default(self, shape: KernelShape) -> KernelConfig:
        """What this vLLM answers where no folder is set."""
        add_inputs = shape.add_inputs if shape.op is LoraOp.EXPAND else None
        ask = inspect.unwrap(self._lookup.get_lora_op_configs)  # uncached
        with _replaced(self._lookup, load_lora_op_config=lambda *_: None):
            answer: dict[str, Any] = ask(
                op_type=shape.op.value,
                max_loras=shape.max_loras + 1,
                batch=shape.num_tokens,
                hidden_size=shape.hidden_size,
                rank=shape.rank,
                num_slices=shape.num_slices,
                add_inputs=add_inputs,
            )
        known = {name: answer[name] for name in shape.op.parameters if name in answer}
        return KernelConfig.from_mapping(shape.op, known)

    def forced(self, shape: KernelShape, capability: tuple[int, int]) -> Mapping[str, int]:
        """What the kernel is launched with, whatever a configuration says.

        Raises:
            KernelsUnusable: A parameter is neither taken over nor always the same.
        """
        forced = {}
        asked = [
            KernelConfig.from_mapping(shape.op, {name: one[name] for name in shape.op.parameters})
            for one in _PROBES
        ]
        launched = [self._launched(shape, config, capability) for config in asked]
        for name in shape.op.parameters:
            wanted, got = (
                [config.as_dict()[name] for config in each] for each in (asked, launched)
            )
            if got[0] == got[1]:
                forced[name] = got[0]
            elif got != wanted:
                raise KernelsUnusable(
                    f"vLLM {self.version} launches {shape.op.value} with {name} {got} where "
                    f"{wanted} is asked for; autotune does not know how to search that"
                )
        return forced

    def compile(
        self, shape: KernelShape, config: KernelConfig, capability: tuple[int, int]
    ) -> CompiledKernel:
        """Compile into Triton's cache; leaves the process unable to launch.

        Args:
            shape: The shape.
            config: The configuration.
            capability: Compute capability of the target, such as ``(9, 0)``.

        Raises:
            Exception: Whatever the compiler raises.
        """
        ahead.compile_for(capability)
        kernel = self._ops[shape.op].kernel
        described = []

        def warm_up(
            grid: tuple[int, ...], arguments: tuple[Any, ...], named: dict[str, Any]
        ) -> None:
            compiled = kernel.warmup(*arguments, grid=grid, **named)
            described.append(ahead.describe(compiled, grid))

        self._call_as_on(capability, inputs_without_memory(shape), config, warm_up)
        return described[0]

    def launch(self, inputs: Inputs, config: KernelConfig, weight_set: int) -> None:
        """Enqueue the op once on the current stream, by vLLM's wrapper.

        Args:
            inputs: The tensors of the shape.
            config: The configuration.
            weight_set: Which of the rotating weight sets is read.

        Raises:
            Exception: Whatever the launcher raises, such as ``OutOfResources``.
        """
        if self._adopted is not inputs:
            self._adopt(inputs)
        self._ops[inputs.shape.op].call(inputs, config, weight_set)

    # ----------------------------------------------------------------- inside

    def _adopt(self, inputs: Inputs) -> None:
        """Make vLLM's tables of weight addresses now: while a graph is captured is too late.

        vLLM keeps them by address for good, as its weights stay where they are. Ours do not: an
        entry of an earlier shape would be found for the weights that lie there now.
        """
        self._forget_weights()
        for weights in inputs.weight_sets:
            self._ops[inputs.shape.op].make_table(weights)
        self._adopted = inputs

    def _forget_weights(self) -> None:
        for op in self._ops.values():
            op.forget_tables()
        self._adopted = None

    def _launched(
        self, shape: KernelShape, config: KernelConfig, capability: tuple[int, int]
    ) -> KernelConfig:
        """What vLLM's wrapper makes of a configuration."""
        names = self._ops[shape.op].kernel.arg_names
        launches: list[dict[str, Any]] = []
        self._call_as_on(
            capability,
            inputs_without_memory(shape),
            config,
            lambda _grid, arguments, named: launches.append(
                dict(zip(names, arguments, strict=False)) | named
            ),
        )
        got = {name: launches[0][_KERNEL_NAMES.get(name, name)] for name in shape.op.parameters}
        return KernelConfig.from_mapping(shape.op, got)

    def _call_as_on(
        self,
        capability: tuple[int, int],
        inputs: Inputs,
        config: KernelConfig,
        launcher: _Launcher,
    ) -> None:
        """Run vLLM's wrapper as if on such a device, up to the launch, which ``launcher`` gets."""
        stand_ins = {
            "current_platform": _Platform(capability),
            "async_tensor_h2d": _table_without_memory,
        }
        op = self._ops[inputs.shape.op]
        self._forget_weights()  # those without memory all lie at address 0
        self._lookup.supports_pdl.cache_clear()
        with ExitStack() as stack:
            for module in (self._lookup, op.module):
                found = {name: each for name, each in stand_ins.items() if hasattr(module, name)}
                stack.enter_context(_replaced(module, **found))
            stack.enter_context(op.with_kernel(launcher))
            op.call(inputs, config, 0)
        self._lookup.supports_pdl.cache_clear()
        self._forget_weights()


class _Op:
    """One of vLLM's wrappers, made to take its configuration from us."""

    def __init__(self, names: _Names) -> None:
        """Find the wrapper and its kernel, and take the place of the look-up.

        Raises:
            KernelsUnusable: They are not there, or take what we do not know.
        """
        self._names, self.module = names, _part(f"{_PACKAGE}.{names.module}")
        self._lookup = _part(f"{_PACKAGE}.utils")
        needed = (names.wrapper, names.kernel, names.table, "get_lora_op_configs")
        for module, name in (
            *((self.module, each) for each in needed),
            (self._lookup, names.tables),
        ):
            if not hasattr(module, name):
                raise _unknown(f"{module.__name__} has no {name}")
        self.kernel = getattr(self.module, names.kernel)
        if not isinstance(self.kernel, KernelInterface):
            raise _unknown(f"it has turned Triton off, {names.kernel} is no Triton kernel")
        self._wrapper = getattr(self.module, names.wrapper)
        self._takes = self._parameters()
        self._config: dict[str, int] = {}
        vars(self.module)["get_lora_op_configs"] = lambda *_, **__: self._config

    def make_table(self, weights: Sequence[torch.Tensor]) -> None:
        """Have vLLM make the table of the addresses of a weight set, which it keeps."""
        make = getattr(self.module, self._names.table)
        between = (0,) if "offset_start" in self._names.own else ()
        make(list(weights), *between, weights[0].device)

    def forget_tables(self) -> None:
        """Drop all tables of weights that vLLM keeps."""
        getattr(self._lookup, self._names.tables).clear()

    def with_kernel(self, launcher: _Launcher) -> AbstractContextManager[None]:
        """Launches go to ``launcher`` for a while."""
        return _replaced(self.module, **{self._names.kernel: _Kernel(launcher)})

    def call(self, inputs: Inputs, config: KernelConfig, weight_set: int) -> None:
        """Run the wrapper with a configuration and one of the weight sets."""
        self._config = config.as_dict()
        shape, tokens = inputs.shape, inputs.tokens
        arguments = {
            "inputs": inputs.x,
            self._names.weights: list(inputs.weight_sets[weight_set]),
            "output_tensor": inputs.out,
            "token_lora_mapping": tokens.token_lora_mapping,
            "token_indices_sorted_by_lora_ids": tokens.token_indices_sorted_by_lora_ids,
            "num_tokens_per_lora": tokens.num_tokens_per_lora,
            "lora_token_start_loc": tokens.lora_token_start_loc,
            "lora_ids": tokens.lora_ids,
            # vLLM reads these two on the host.
            "no_lora_flag_cpu": torch.tensor([False]),  # (1,)
            "num_active_loras": torch.tensor([shape.max_loras + 1], dtype=torch.int32),  # (1,)
            "scaling": inputs.scaling,
            "offset_start": 0,
            "add_inputs": shape.add_inputs,
        }
        self._wrapper(**{name: arguments[name] for name in self._takes})

    def _parameters(self) -> tuple[str, ...]:
        """The wrapper's parameters; all of them must be known."""
        taken = tuple(inspect.signature(self._wrapper).parameters)
        known = {*_COMMON, self._names.weights, *self._names.own}
        strange = [name for name in taken if name not in known]
        if strange:
            raise _unknown(f"{self._names.wrapper} takes {', '.join(strange)}")
        return taken


class _Platform:
    """What vLLM's wrappers ask the platform, answered for a device that need not be here."""

    def __init__(self, capability: tuple[int, int]) -> None:
        self._number = 10 * capability[0] + capability[1]

    def is_cuda(self) -> bool:
        return True

    def is_device_capability(self, capability: int | tuple[int, int]) -> bool:
        return self._number == _as_number(capability)

    def has_device_capability(self, capability: int | tuple[int, int]) -> bool:
        return self._number >= _as_number(capability)


class _Kernel:
    """Stands where a wrapper finds its kernel: ``kernel[grid](...)`` goes to the launcher."""

    def __init__(self, launcher: _Launcher) -> None:
        self._launcher = launcher

    def __getitem__(self, grid: tuple[int, ...]) -> Callable[..., None]:
        return lambda *arguments, **named: self._launcher(grid, arguments, named)


def _as_number(capability: int | tuple[int, int]) -> int:
    return capability if isinstance(capability, int) else 10 * capability[0] + capability[1]


def _table_without_memory(data: list[int], dtype: torch.dtype, **_: object) -> torch.Tensor:
    """In place of a copy to the device."""
    return torch.empty(len(data), dtype=dtype, device="meta")  # (num_slices,)


def _import_vllm() -> str:
    """Import the installed vLLM; its release.

    Raises:
        KernelsUnusable: There is none, or it cannot be imported.
    """
    os.environ.setdefault("VLLM_LOGGING_LEVEL", "ERROR")  # it tells of every default it takes
    try:
        vllm = importlib.import_module("vllm")
        version: str = vllm.__version__
    except ImportError as error:
        raise KernelsUnusable(
            f"cannot import vLLM ({error}); install it here, or take --kernels builtin"
        ) from error
    return version


def _part(name: str) -> ModuleType:
    try:
        return importlib.import_module(name)
    except ImportError as error:
        raise _unknown(str(error)) from error


def _unknown(what: str) -> KernelsUnusable:
    version = importlib.import_module("vllm").__version__
    return KernelsUnusable(
        f"cannot drive the kernels of vLLM {version}: {what}; 0.11.1 to 0.33.0 are known to work, "
        "and --kernels builtin needs none"
    )


@contextmanager
def _replaced(module: ModuleType, **stand_ins: object) -> Iterator[None]:
    """Attributes of a module, replaced for a while."""
    kept = {name: getattr(module, name) for name in stand_ins}
    vars(module).update(stand_ins)
    try:
        yield
    finally:
        vars(module).update(kept)
