"""vLLM's wrappers of the dense ops, ``lora_shrink`` and ``lora_expand``.

The wrappers call ``get_lora_op_configs`` for their configuration. That function is replaced by one
that answers with a candidate, and the variable for a stream of its own by what the shape says.
Nothing else is changed on the way to the kernel. This works from vLLM 0.11.1 to 0.33.0
(``lora_shrink_op.py`` and ``lora_expand_op.py``).
"""

from __future__ import annotations

import inspect
from typing import TYPE_CHECKING, Any, NamedTuple

import torch

from autotune.launch.op import LoraOp
from autotune.measure.kernels.vllm_parts import attribute, known_parameters, part, triton_kernel

if TYPE_CHECKING:
    from autotune.launch.config import KernelConfig
    from autotune.measure.kernels.inputs import Inputs


class _Names(NamedTuple):
    """What vLLM calls the parts of one op.

    Attributes:
        module: Where the wrapper is.
        wrapper: The function that launches the kernel.
        kernel: The Triton kernel, as the wrapper finds it in its module.
        weights: The wrapper's parameter for the weights.
        table: The function that makes the table of the weights' addresses.
        tables: The dictionary in which vLLM keeps these tables, by address.
        own: Parameters that only this op's wrapper has.
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

#: Parameters that both wrappers have; they have the last one from 0.16 on, a number in that release
#: and a tensor in all since.
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


class _Environment:
    """vLLM's environment as a wrapper reads it, with a variable that the shape decides.

    Attributes:
        VLLM_LORA_ENABLE_DUAL_STREAM: Whether dense kernels are launched dependent ones.
    """

    def __init__(self, envs: Any) -> None:  # noqa: ANN401 - vLLM's module, or None
        self._envs = envs
        self.VLLM_LORA_ENABLE_DUAL_STREAM = False

    def __getattr__(self, name: str) -> object:
        return getattr(self._envs, name)


class DenseOp:
    """One of vLLM's wrappers, made to take its configuration from us.

    Attributes:
        module: The module of the wrapper.
        kernels: The wrapper's kernel, by its name in the module.
        parameter_names: The kernel's names of parameters that differ from ours, by our names.
    """

    parameter_names = {  # noqa: RUF012 - nobody changes it
        name: name.upper() for name in ("block_m", "block_n", "block_k", "split_k", "group_size_m")
    }

    def __init__(self, op: LoraOp) -> None:
        """Find the wrapper and its kernel, and replace its look-up of configurations.

        Raises:
            KernelsUnusable: The wrapper or the kernel is missing, or has an unknown parameter.
        """
        self._names = names = _OPS[op]
        self.module = part(names.module)
        self.kernels = {names.kernel: triton_kernel(self.module, names.kernel)}
        self._wrapper = attribute(self.module, names.wrapper)
        self._make_table = attribute(self.module, names.table)
        self._tables = attribute(part("utils"), names.tables)
        self._takes = known_parameters(self._wrapper, (*_COMMON, names.weights, *names.own))
        counted = inspect.signature(self._wrapper).parameters.get("num_active_loras")
        self._counts_in_tensor = counted is not None and counted.annotation is torch.Tensor
        self._config: dict[str, int] = {}
        attribute(self.module, "get_lora_op_configs")
        vars(self.module)["get_lora_op_configs"] = lambda *_, **__: self._config
        self._server = _Environment(getattr(self.module, "envs", None))
        if hasattr(self.module, "envs"):  # from 0.20 on
            vars(self.module)["envs"] = self._server

    def adopt(self, inputs: Inputs) -> None:
        """Make the tables of weight addresses now, since they cannot be made during a capture.

        vLLM keeps the tables by address forever, because its weights never move. Ours do: a table
        of an earlier shape would be found for other weights at the same address. So old tables are
        dropped first.
        """
        self.forget()
        between = (0,) if "offset_start" in self._names.own else ()
        for weights in inputs.weight_sets:
            self._make_table(list(weights), *between, weights[0].device)

    def forget(self) -> None:
        """Drop all tables of weight addresses that vLLM keeps."""
        self._tables.clear()

    def call(self, inputs: Inputs, config: KernelConfig, weight_set: int) -> None:
        """Run the wrapper with a configuration and one of the weight sets."""
        self._config = config.as_dict()
        shape, tokens, slots = inputs.shape, inputs.tokens, inputs.shape.lora_slots
        self._server.VLLM_LORA_ENABLE_DUAL_STREAM = shape.dual_stream
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
            "num_active_loras": torch.tensor([slots], dtype=torch.int32)  # (1,)
            if self._counts_in_tensor
            else slots,
            "scaling": inputs.scaling,
            "offset_start": 0,
            "add_inputs": shape.add_inputs,
        }
        self._wrapper(**{name: arguments[name] for name in self._takes})

    def collect(self, inputs: Inputs, config: KernelConfig) -> None:
        """Do nothing: the result is in ``inputs.out`` already."""
