"""From a model's config to the LoRA layers that vLLM makes of it, and the kernels they launch.

``table`` has an entry for each architecture, in the words of its ``config.json``, and ``modules``
defines what its entries are made of. ``language_model``, ``config_json`` and ``adapters`` read
files, and ``lora_layers`` computes the shapes of the kernels. ``asking`` has the installed vLLM say
what the layers are. Nothing here knows of batch sizes: every shape is for one token.
"""

from autotune.plan.models.adapter_config import read_adapter
from autotune.plan.models.adapters import Adapter, AdapterError
from autotune.plan.models.json_files import read_config
from autotune.plan.models.language_model import UnknownModel, language_model_of
from autotune.plan.models.lora_layers import LoraLayer, lora_layers
from autotune.plan.models.older import made_otherwise
from autotune.plan.models.server import MOE_BACKENDS, Server

__all__ = [
    "MOE_BACKENDS",
    "Adapter",
    "AdapterError",
    "LoraLayer",
    "Server",
    "UnknownModel",
    "language_model_of",
    "lora_layers",
    "made_otherwise",
    "read_adapter",
    "read_config",
]
