"""Asking the installed vLLM which LoRA layers it makes of a model, in place of the table.

``question`` starts ``inside`` in a process of its own and gets its answer; there ``pretended``
stands in for GPUs and ``wrapped`` reads what vLLM's LoRA manager made. ``asked_layers`` turns the
answer into the layers that the table would give.
"""

from autotune.plan.models.asking.asked_layers import asked_adapted, asked_layers
from autotune.plan.models.asking.question import has_vllm

__all__ = ["asked_adapted", "asked_layers", "has_vllm"]
