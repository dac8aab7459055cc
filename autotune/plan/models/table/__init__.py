"""The table of architectures: of which blocks each is built, as vLLM makes it.

To add one, give it a line: the modules that vLLM puts LoRA on, in the words of its ``config.json``.
``blocks``, ``recurrent`` and ``experts`` have what architectures share, and ``blocks`` says how a
size is written. ``tests/plan/models/made_by_vllm.jsonl`` has what vLLM makes.
"""

from collections.abc import Mapping

from autotune.plan.models.modules import Architecture, Wrapper
from autotune.plan.models.table.dense import DENSE_MODELS
from autotune.plan.models.table.hybrid import HYBRID_MODELS
from autotune.plan.models.table.media import MEDIA
from autotune.plan.models.table.sparse import SPARSE_MODELS

_ALL: Mapping[str, Architecture | Wrapper] = {
    **DENSE_MODELS,
    **SPARSE_MODELS,
    **HYBRID_MODELS,
    **MEDIA,
}

#: By the first name in a config's ``architectures``.
ARCHITECTURES: Mapping[str, Architecture | Wrapper] = {name: _ALL[name] for name in sorted(_ALL)}

__all__ = ["ARCHITECTURES"]
