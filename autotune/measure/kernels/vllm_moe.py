"""vLLM's two kernels of a fused-MoE LoRA layer, ``_fused_moe_lora_shrink`` and ``_expand``.

They take their configuration as arguments, so it is we who call them, with what ``_fused_moe_lora``
passes (``fused_moe_lora_op.py``, 0.22.1 to 0.33.0): on Hopper and later with its tensor memory
accelerator and dependent launches. There the values between the two kernels lie in the order of the
sorted rows, and here as well.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

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
    "block_size_m",
    "block_size_n",
    "block_size_k",
    "group_size_m",
    "num_warps",
    "num_stages",
    "split_k",
    "num_active_loras",
    "mul_routed_weight",
    "use_gdc",
    "use_tma",
)

#: Parameters of one of them only.
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
        cache: (num_slices, m, top_k, rank), or (num_slices, max_loras, padded, rank) where they
            are kept in the order of the sorted rows.
        is_sorted: Whether they are.
    """

    cache: torch.Tensor
    is_sorted: bool


class MoeOp:
    """One of vLLM's two functions, called for w13 or for w2.

    Attributes:
        module: Where the functions are.
        kernels: Their kernel, by what it is called there.
        parameter_names: What the kernel calls the parameters that it calls otherwise than we do.
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
            KernelsUnusable: They are not there, or take what we do not know.
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
                f"{name} is that of a release before 0.22, which cannot be driven for MoE"
            )
        self._tables = attribute(self.module, "_LORA_PTR_DICT")
        self._between: dict[int, _Between] = {}

    def adopt(self, inputs: Inputs) -> None:
        """Make the tables of weight addresses, which vLLM keeps by address; see ``DenseOp``."""
        self.forget()
        make = attribute(self.module, "_get_ptr")
        for weights in inputs.weight_sets:
            make(list(weights), weights[0].device)
        if self._uses_tma(inputs):  # descriptors that are made in the kernel need memory
            attribute(self.module, "set_triton_allocator")(inputs.x.device)

    def forget(self) -> None:
        """Drop the tables that vLLM keeps, and what lies between the kernels."""
        self._tables.clear()
        self._between.clear()

    def call(self, inputs: Inputs, config: KernelConfig, weight_set: int) -> None:
        """Run the function with a configuration and one of the weight sets."""
        shape, tokens = inputs.shape, inputs.tokens
        alignment = alignment_of(inputs, config.block_m)
        between = self._made_between(inputs, alignment, config.block_m)
        _, n, k = matmul_sizes(shape)
        weights = list(inputs.weight_sets[weight_set])
        topk_weights, enabled = routing_tables(inputs)
        arguments = {
            "a_intermediate_cache1": between.cache,
            "qcurr_hidden_states": inputs.x,
            "lora_a_stacked": weights,
            "lora_b_stacked": weights,
            "output": inputs.out.view(shape.num_tokens, shape.top_k, -1),
            "topk_weights": topk_weights,
            "sorted_token_ids": alignment.sorted_token_ids,
            "expert_ids": alignment.expert_ids,
            "num_tokens_post_padded": alignment.num_tokens_post_padded,
            "token_lora_mapping": tokens.token_lora_mapping,
            "top_k_num": shape.top_k,
            "lora_ids": tokens.lora_ids,
            "adapter_enabled": enabled,
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
            "block_size_m": config.block_m,
            "block_size_n": config.block_n,
            "block_size_k": config.block_k,
            "group_size_m": config.group_size_m,
            "num_warps": config.num_warps,
            "num_stages": config.num_stages,
            "split_k": config.split_k,
            # vLLM reads it on the host.
            "num_active_loras": torch.tensor([shape.max_loras + 1], dtype=torch.int32),  # (1,)
            "mul_routed_weight": shape.op in {LoraOp.W2_SHRINK, LoraOp.W2_EXPAND},
            "offset": 0,
            "add_inputs": True,
            "use_gdc": self._asks("supports_pdl", inputs),
            "use_tma": self._uses_tma(inputs),
        }
        if is_shrink(shape.op):
            between.cache.zero_()  # vLLM makes a new one of zeros for every layer
        self._function(**{name: arguments[name] for name in self._takes})

    def collect(self, inputs: Inputs, config: KernelConfig) -> None:
        """Put what a shrink has left in the order of the sorted rows into ``inputs.out``."""
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
        """What vLLM would use on this device: nothing of the kind with fully sharded LoRAs."""
        answer = attribute(self.module, question)(inputs.x.device)
        return bool(answer) and not inputs.shape.fully_sharded

    def _made_between(self, inputs: Inputs, alignment: Alignment, block_m: int) -> _Between:
        """What lies between the kernels; made on the first call for a ``block_m``."""
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


def alignment_of(inputs: Inputs, block_m: int) -> Alignment:
    """The rows of every block, on the device of the inputs."""
    if inputs.moe is not None:
        return inputs.moe.alignment(block_m)
    return _alignment_without_memory(inputs.shape, block_m)


def routing_tables(inputs: Inputs) -> tuple[torch.Tensor, torch.Tensor]:
    """topk_weights (m, top_k) float32 and adapter_enabled (max_loras + 1,) int32."""
    if inputs.moe is not None:
        return inputs.moe.routing.topk_weights, inputs.moe.adapter_enabled
    shape = inputs.shape
    return (
        torch.empty(shape.num_tokens, shape.top_k, device="meta"),
        torch.empty(shape.max_loras + 1, dtype=torch.int32, device="meta"),
    )


def _places(inputs: Inputs, block_m: int) -> tuple[torch.Tensor, torch.Tensor]:
    """(used rows,) each: rows of the output, and where they lie among the sorted ones."""
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
