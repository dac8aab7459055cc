"""From a model's config to the LoRA layers that vLLM makes of it, and the kernels they launch.

``architectures`` is the table: one entry per architecture, in the words of its ``config.json``.
``config`` and ``adapters`` read files, ``layers`` does the sums. Nothing here knows of batch sizes
or of how many adapters are served: what a layer launches lacks only those to be a ``KernelShape``.
"""

from autotune.plan.models.adapters import Adapter, read_adapter
from autotune.plan.models.config_json import read_config
from autotune.plan.models.lora_layers import LoraLayer, Server, lora_layers

__all__ = [
    "Adapter",
    "LoraLayer",
    "Server",
    "lora_layers",
    "read_adapter",
    "read_config",
]
