"""vLLM's ``_fused_moe_lora``: a MoE layer's shrink and the expand after it, as vLLM runs them.

Up to rank 128 that is one kernel for both, which reads at most ``block_m`` (see
``autotune.launch.release``); else the two that ``vllm_moe`` runs alone, back to back.
(``fused_moe_lora_op.py``, 0.22.1 to 0.33.0.)
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
import triton.tools.tensor_descriptor  # noqa: F401 - vLLM's functions use it unimported

from autotune.launch.op import LoraOp
from autotune.measure.kernels.layout import pair_of
from autotune.measure.kernels.vllm_moe import alignment_of, routing_tables
from autotune.measure.kernels.vllm_parts import attribute, known_parameters, part, triton_kernel

if TYPE_CHECKING:
    from autotune.launch.config import KernelConfig
    from autotune.measure.kernels.inputs import Inputs

#: What both configurations are taken apart into, after ``shrink_`` and ``expand_``.
_CONFIG = {
    "block_size_m": "block_m",
    "block_size_n": "block_n",
    "block_size_k": "block_k",
    "group_size_m": "group_size_m",
    "num_warps": "num_warps",
    "num_stages": "num_stages",
    "split_k": "split_k",
}

_PARAMETERS = (
    "output",
    "qcurr_hidden_states",
    "lora_a_stacked",
    "lora_b_stacked",
    "topk_weights",
    "sorted_token_ids",
    "expert_ids",
    "num_tokens_post_padded",
    "token_lora_mapping",
    "max_lora_rank",
    "top_k_num",
    "lora_ids",
    "num_active_loras",
    "adapter_enabled",
    *(f"{which}_{name}" for which in ("shrink", "expand") for name in _CONFIG),
    "mul_routed_weight",
    "fully_sharded",
    "offset",
    "add_inputs",
)


class MoePair:
    """vLLM's function for w13 or for w2; its inputs are made with ``pair=True``.

    Attributes:
        module: Where the function is.
        kernels: The kernels that stand for both in one launch, by what they are called there.
    """

    def __init__(self) -> None:
        """Find the function and its kernels.

        Raises:
            KernelsUnusable: They are not there, or take what we do not know.
        """
        self.module = part("fused_moe_lora_op")
        names = ("_fused_moe_lora_one_shot_kernel", "_fused_moe_lora_small_batch_kernel")
        self.kernels = {name: triton_kernel(self.module, name) for name in names}
        self._function = attribute(self.module, "_fused_moe_lora")
        self._takes = known_parameters(self._function, _PARAMETERS)
        self._tables = attribute(self.module, "_LORA_PTR_DICT")

    def adopt(self, inputs: Inputs) -> None:
        """Make the tables of weight addresses, which vLLM keeps by address; see ``DenseOp``."""
        self.forget()
        make = attribute(self.module, "_get_ptr")
        for weights in inputs.weight_sets:
            for each in _halves(weights):
                make(each, inputs.x.device)

    def forget(self) -> None:
        """Drop the tables that vLLM keeps."""
        self._tables.clear()

    def call(self, inputs: Inputs, config: KernelConfig, weight_set: int) -> None:
        """Run the function where it reads one configuration for both."""
        self.call_both(inputs, config, config, weight_set)

    def call_both(
        self, inputs: Inputs, shrink: KernelConfig, expand: KernelConfig, weight_set: int
    ) -> None:
        """Run the function with the configurations of the shrink and of the expand.

        Args:
            inputs: Those of the pair.
            shrink: Its ``block_m`` is that of the alignment.
            expand: Must have the same ``block_m``.
            weight_set: Which of the rotating weight sets is read.
        """
        shape = inputs.shape
        alignment = alignment_of(inputs, shrink.block_m)
        topk_weights, enabled = routing_tables(inputs)
        lora_a, lora_b = _halves(inputs.weight_sets[weight_set])
        arguments = {
            "output": inputs.out.view(shape.num_tokens, shape.top_k, -1),
            "qcurr_hidden_states": inputs.x,
            "lora_a_stacked": lora_a,
            "lora_b_stacked": lora_b,
            "topk_weights": topk_weights,
            "sorted_token_ids": alignment.sorted_token_ids,
            "expert_ids": alignment.expert_ids,
            "num_tokens_post_padded": alignment.num_tokens_post_padded,
            "token_lora_mapping": inputs.tokens.token_lora_mapping,
            "max_lora_rank": shape.rank,
            "top_k_num": shape.top_k,
            "lora_ids": inputs.tokens.lora_ids,
            # vLLM reads it on the host.
            "num_active_loras": torch.tensor([shape.max_loras + 1], dtype=torch.int32),  # (1,)
            "adapter_enabled": enabled,
            "mul_routed_weight": pair_of(shape.op)[0] is LoraOp.W2_SHRINK,
            "fully_sharded": False,
            "offset": 0,
            "add_inputs": True,
        }
        for which, config in (("shrink", shrink), ("expand", expand)):
            arguments |= {f"{which}_{its}": getattr(config, ours) for its, ours in _CONFIG.items()}
        self._function(**{name: arguments[name] for name in self._takes})

    def collect(self, inputs: Inputs, config: KernelConfig) -> None:
        """The result is in ``inputs.out`` already."""


def _halves(weights: tuple[torch.Tensor, ...]) -> tuple[list[torch.Tensor], list[torch.Tensor]]:
    """The slices of the shrink's weights, and of the expand's."""
    half = len(weights) // 2
    return list(weights[:half]), list(weights[half:])
