"""vLLM's two kernels of a fused-MoE LoRA layer, ``_fused_moe_lora_shrink`` and ``_expand``.

The functions take their configuration as arguments. They are called here with the arguments that
``_fused_moe_lora`` passes (``fused_moe_lora_op.py``, 0.17.0 to 0.33.0). On Hopper and later these
turn on the tensor memory accelerator and dependent launches; the values between the two kernels
then lie in the order of the sorted rows.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

import torch
import triton.tools.tensor_descriptor  # noqa: F401 - vLLM's functions use it unimported

from autotune.launch.op import LoraOp
from autotune.launch.sizes import assigns_naively, is_shrink, launched_rows, matmul_sizes
from autotune.measure.kernels.routing import Alignment
from autotune.measure.kernels.vllm_parts import (
    attribute,
    known_parameters,
    part,
    triton_kernel,
    unusable,
)

if TYPE_CHECKING:
    from autotune.launch.config import KernelConfig
    from autotune.launch.shape import KernelShape
    from autotune.measure.kernels.inputs import Inputs

#: vLLM's names of a configuration's parameters, and ours.
CONFIG = {
    "block_size_m": "block_m",
    "block_size_n": "block_n",
    "block_size_k": "block_k",
    "group_size_m": "group_size_m",
    "num_warps": "num_warps",
    "num_stages": "num_stages",
    "split_k": "split_k",
}

#: Parameters of both functions.
_COMMON = (
    "a_intermediate_cache1",
    "topk_weights",
    "sorted_token_ids",
    "expert_ids",
    "num_tokens_post_padded",
    "token_lora_mapping",
    "top_k_num",
    "lora_ids",
    "adapter_enabled",
    "device",
    "N",
    "M",
    "EM",
    "K",
    "num_tokens",
    "num_experts",
    "num_slices",
    *CONFIG,
    "num_active_loras",
    "mul_routed_weight",
    "use_gdc",
    "use_tma",
)

#: The first release with such functions.
_FIRST = "0.17"

#: Parameters that only one of the functions has.
_OF_SHRINK = ("qcurr_hidden_states", "lora_a_stacked")
_OF_EXPAND = (
    "output",
    "lora_b_stacked",
    "max_lora_rank",
    "w1_output_dim_size",
    "offset",
    "add_inputs",
)


class _Between(NamedTuple):
    """The values between the two kernels, for one ``block_m``.

    Attributes:
        cache: (num_slices, m, top_k, rank), or (num_slices, max_loras, padded, rank) in the order
            of the sorted rows.
        is_sorted: Whether ``cache`` is in the order of the sorted rows.
    """

    cache: torch.Tensor
    is_sorted: bool


class MoeOp:
    """One of vLLM's two functions, called for w13 or for w2.

    Attributes:
        module: The module of the functions.
        kernels: The kernel of both functions, by its name in the module.
        parameter_names: The kernel's names of parameters that differ from ours, by our names.
    """

    parameter_names = {  # noqa: RUF012 - nobody changes it
        "block_m": "BLOCK_SIZE_M",
        "block_n": "BLOCK_SIZE_N",
        "block_k": "BLOCK_SIZE_K",
        "split_k": "SPLIT_K",
        "group_size_m": "GROUP_SIZE_M",
    }

    def __init__(self, op: LoraOp) -> None:
        """Find the function and its kernel.

        Raises:
            KernelsUnusable: The function or the kernel is missing, or has an unknown parameter, or
                the release is older than 0.17.
        """
        self._op, self.module = op, part("fused_moe_lora_op")
        kernel = "_fused_moe_lora_kernel"
        self.kernels = {kernel: triton_kernel(self.module, kernel)}
        name, own = (
            ("_fused_moe_lora_shrink", _OF_SHRINK)
            if is_shrink(op)
            else ("_fused_moe_lora_expand", _OF_EXPAND)
        )
        self._function = attribute(self.module, name)
        self._takes = known_parameters(self._function, (*_COMMON, *own))
        if "use_tma" not in self._takes:
            raise unusable(
                f"{name} is that of a release before {_FIRST}, which cannot be driven for MoE"
            )
        self._tables = attribute(self.module, "_LORA_PTR_DICT")
        self._between: dict[int, _Between] = {}

    def adopt(self, inputs: Inputs) -> None:
        """Make the tables of weight addresses anew; see ``DenseOp.adopt``."""
        self.forget()
        make = attribute(self.module, "_get_ptr")
        for weights in inputs.weight_sets:
            make(list(weights), weights[0].device)
        if self._uses_tma(inputs):  # the kernel makes descriptors, which need memory
            attribute(self.module, "set_triton_allocator")(inputs.x.device)

    def forget(self) -> None:
        """Drop all tables of weight addresses, and the values between the kernels."""
        self._tables.clear()
        self._between.clear()

    def call(self, inputs: Inputs, config: KernelConfig, weight_set: int) -> None:
        """Run the function with a configuration and one of the weight sets."""
        shape = inputs.shape
        alignment = alignment_of(inputs, config.block_m)
        between = self._made_between(inputs, alignment, config.block_m)
        _, n, k = matmul_sizes(shape)
        weights = list(inputs.weight_sets[weight_set])
        arguments = shared_arguments(inputs, alignment) | {
            "a_intermediate_cache1": between.cache,
            "qcurr_hidden_states": inputs.x,
            "lora_a_stacked": weights,
            "lora_b_stacked": weights,
            "device": inputs.x.device,
            "N": n,
            "M": shape.num_tokens,
            "EM": launched_rows(shape, config.block_m),
            "K": k,
            "num_tokens": shape.num_tokens * shape.top_k,
            "num_experts": shape.num_experts,
            "num_slices": shape.num_slices,
            "max_lora_rank": shape.server_rank,
            "w1_output_dim_size": n,
            "use_gdc": self._asks("supports_pdl", inputs),
            "use_tma": self._uses_tma(inputs),
        }
        arguments |= {its: getattr(config, ours) for its, ours in CONFIG.items()}
        if is_shrink(shape.op):
            between.cache.zero_()  # vLLM makes a new cache of zeros for every layer
        self._function(**{name: arguments[name] for name in self._takes})

    def collect(self, inputs: Inputs, config: KernelConfig) -> None:
        """Copy a shrink's result to ``inputs.out`` if it lies in the order of the sorted rows."""
        between = self._between.get(config.block_m)
        if between is None or not between.is_sorted or not is_shrink(self._op):
            return
        rows, places = _places(inputs, config.block_m)
        inputs.out.zero_()
        inputs.out[:, rows] = between.cache.flatten(1, 2)[:, places]  # (num_slices, rows, rank)

    # ----------------------------------------------------------------- inside

    def _uses_tma(self, inputs: Inputs) -> bool:
        return self._asks("supports_tma", inputs)

    def _asks(self, question: str, inputs: Inputs) -> bool:
        """Whether vLLM uses a feature on this device; with fully sharded LoRAs it uses none."""
        answer = attribute(self.module, question)(inputs.x.device)
        return bool(answer) and not inputs.shape.fully_sharded

    def _made_between(self, inputs: Inputs, alignment: Alignment, block_m: int) -> _Between:
        """The values between the kernels, made on the first call for a ``block_m``."""
        if block_m not in self._between:
            self._between[block_m] = self._make_between(inputs, alignment, block_m)
        return self._between[block_m]

    def _make_between(self, inputs: Inputs, alignment: Alignment, block_m: int) -> _Between:
        shape = inputs.shape
        natural = inputs.out if is_shrink(shape.op) else inputs.x  # (num_slices, rows, rank)
        if alignment.sorted_token_ids is None or not self._uses_tma(inputs):
            size = (shape.num_slices, shape.num_tokens, shape.top_k, natural.shape[-1])
            return _Between(natural.view(size), is_sorted=False)
        size = (shape.num_slices, *alignment.sorted_token_ids.shape, natural.shape[-1])
        cache = natural.new_zeros(size)
        if not is_shrink(shape.op) and inputs.moe is not None:
            rows, places = _places(inputs, block_m)
            cache.flatten(1, 2)[:, places] = natural[:, rows]
        return _Between(cache, is_sorted=True)


def shared_arguments(inputs: Inputs, alignment: Alignment) -> dict[str, Any]:
    """The arguments that ``_fused_moe_lora`` and the functions of its two kernels all take.

    Args:
        inputs: The tensors.
        alignment: The rows of every block.
    """
    shape, tokens = inputs.shape, inputs.tokens
    topk_weights, enabled = _routing_tables(inputs)
    return {
        "output": inputs.out.view(shape.num_tokens, shape.top_k, -1),
        "topk_weights": topk_weights,
        "sorted_token_ids": alignment.sorted_token_ids,
        "expert_ids": alignment.expert_ids,
        "num_tokens_post_padded": alignment.num_tokens_post_padded,
        "token_lora_mapping": tokens.token_lora_mapping,
        "top_k_num": shape.top_k,
        "lora_ids": tokens.lora_ids,
        # vLLM reads this one on the host.
        "num_active_loras": torch.tensor([shape.lora_slots], dtype=torch.int32),  # (1,)
        "adapter_enabled": enabled,
        "mul_routed_weight": shape.op in {LoraOp.W2_SHRINK, LoraOp.W2_EXPAND},
        "offset": 0,
        "add_inputs": not shape.dual_stream,
    }


def alignment_of(inputs: Inputs, block_m: int) -> Alignment:
    """The rows of every block; for inputs without memory, tensors without memory."""
    if inputs.moe is not None:
        return inputs.moe.alignment(block_m)
    return _alignment_without_memory(inputs.shape, block_m)


def _routing_tables(inputs: Inputs) -> tuple[torch.Tensor, torch.Tensor]:
    """topk_weights (m, top_k) float32 and adapter_enabled (max_loras + 1,) int32."""
    if inputs.moe is not None:
        return inputs.moe.routing.topk_weights, inputs.moe.adapter_enabled
    shape = inputs.shape
    return (
        torch.empty(shape.num_tokens, shape.top_k, device="meta"),
        torch.empty(shape.max_loras + 1, dtype=torch.int32, device="meta"),
    )


def _places(inputs: Inputs, block_m: int) -> tuple[torch.Tensor, torch.Tensor]:
    """(used rows,) each: rows of the output, and their places among the sorted rows."""
    assert inputs.moe is not None  # noqa: S101 - for mypy: these are real inputs
    ids = inputs.moe.alignment(block_m).sorted_token_ids
    assert ids is not None  # noqa: S101 - for mypy: these are sorted
    flat = ids.flatten()  # (max_loras * padded,)
    places = (flat < inputs.shape.num_tokens * inputs.shape.top_k).nonzero().squeeze(1)
    return flat[places].long(), places


def _alignment_without_memory(shape: KernelShape, block_m: int) -> Alignment:
    """The tensors of ``align`` on PyTorch's ``meta`` device."""

    def empty(*size: int) -> torch.Tensor:
        return torch.empty(size, dtype=torch.int32, device="meta")

    padded = launched_rows(shape, block_m)
    if assigns_naively(shape):
        return Alignment(
            sorted_token_ids=None,
            expert_ids=empty(shape.num_tokens * shape.top_k),
            num_tokens_post_padded=None,
        )
    return Alignment(
        sorted_token_ids=empty(shape.max_loras, padded),
        expert_ids=empty(shape.max_loras, -(-padded // block_m)),
        num_tokens_post_padded=empty(shape.max_loras),
    )
