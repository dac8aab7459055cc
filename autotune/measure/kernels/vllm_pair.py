"""vLLM's ``_fused_moe_lora``: a MoE layer's shrink and the expand after it, as vLLM runs them.

Up to rank 128 it launches one kernel for both ops, which reads at most ``block_m`` of a
configuration (see ``autotune.launch.release``). Above that it launches the two kernels that
``vllm_moe`` runs alone, one after the other. (``fused_moe_lora_op.py``, 0.22.1 to 0.33.0.)
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
import triton.tools.tensor_descriptor  # noqa: F401 - vLLM's functions use it unimported

from autotune.measure.kernels.vllm_moe import CONFIG, alignment_of, shared_arguments
from autotune.measure.kernels.vllm_parts import attribute, known_parameters, part, triton_kernel

if TYPE_CHECKING:
    from autotune.launch.config import KernelConfig
    from autotune.measure.kernels.inputs import Inputs

#: Parameters of the function; those of a configuration come twice, for shrink and expand.
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
    *(f"{which}_{name}" for which in ("shrink", "expand") for name in CONFIG),
    "mul_routed_weight",
    "fully_sharded",
    "offset",
    "add_inputs",
)


class MoePair:
    """vLLM's function for w13 or for w2; its inputs are made with ``pair=True``.

    Attributes:
        module: The module of the function.
        kernels: The kernels that do both ops in one launch, by their names in the module.
    """

    def __init__(self) -> None:
        """Find the function and its kernels.

        Raises:
            KernelsUnusable: The function or a kernel is missing, or has an unknown parameter.
        """
        self.module = part("fused_moe_lora_op")
        names = ("_fused_moe_lora_one_shot_kernel", "_fused_moe_lora_small_batch_kernel")
        self.kernels = {name: triton_kernel(self.module, name) for name in names}
        self._function = attribute(self.module, "_fused_moe_lora")
        self._takes = known_parameters(self._function, _PARAMETERS)
        self._tables = attribute(self.module, "_LORA_PTR_DICT")

    def adopt(self, inputs: Inputs) -> None:
        """Make the tables of weight addresses anew; see ``DenseOp.adopt``."""
        self.forget()
        make = attribute(self.module, "_get_ptr")
        for weights in inputs.weight_sets:
            for each in _halves(weights):
                make(each, inputs.x.device)

    def forget(self) -> None:
        """Drop all tables of weight addresses that vLLM keeps."""
        self._tables.clear()

    def call(self, inputs: Inputs, config: KernelConfig, weight_set: int) -> None:
        """Run the function with one configuration for both ops."""
        self.call_both(inputs, config, config, weight_set)

    def call_both(
        self, inputs: Inputs, shrink: KernelConfig, expand: KernelConfig, weight_set: int
    ) -> None:
        """Run the function with the configurations of the shrink and of the expand.

        Args:
            inputs: The inputs, made with ``pair=True``.
            shrink: The shrink's configuration.
            expand: The expand's configuration, with the same ``block_m``.
            weight_set: Which of the rotating weight sets is read.
        """
        lora_a, lora_b = _halves(inputs.weight_sets[weight_set])
        arguments = shared_arguments(inputs, alignment_of(inputs, shrink.block_m)) | {
            "qcurr_hidden_states": inputs.x,
            "lora_a_stacked": lora_a,
            "lora_b_stacked": lora_b,
            "max_lora_rank": inputs.shape.rank,
            "fully_sharded": False,
        }
        for which, config in (("shrink", shrink), ("expand", expand)):
            arguments |= {f"{which}_{its}": getattr(config, ours) for its, ours in CONFIG.items()}
        self._function(**{name: arguments[name] for name in self._takes})

    def collect(self, inputs: Inputs, config: KernelConfig) -> None:
        """Do nothing: the result is in ``inputs.out`` already."""


def _halves(weights: tuple[torch.Tensor, ...]) -> tuple[list[torch.Tensor], list[torch.Tensor]]:
    """The slices of the shrink's weights, and of the expand's."""
    half = len(weights) // 2
    return list(weights[:half]), list(weights[half:])
