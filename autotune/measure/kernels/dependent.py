"""Programmatic dependent launch: a kernel begins before the one ahead of it has ended.

vLLM launches its dense kernels so where they run on a stream of their own, beside the base layer
(``use_gdc`` in ``lora_shrink_op.py`` and ``lora_expand_op.py``, 0.22.1 to 0.33.0), unless
``VLLM_LORA_DISABLE_PDL`` is set.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from autotune.launch.shape import KernelShape

#: The first compute capability with dependent launches: Hopper's.
_FIRST = (9, 0)


def dependent_launch(shape: KernelShape, capability: tuple[int, int]) -> dict[str, Any]:
    """The arguments of a dense kernel that say whether its launch is a dependent one.

    Args:
        shape: A dense shape.
        capability: The GPU's compute capability; (0, 0) for the CPU.
    """
    is_off = os.environ.get("VLLM_LORA_DISABLE_PDL", "0") not in {"", "0"}
    if not shape.dual_stream or capability < _FIRST or is_off:
        return {"use_gdc": False}
    return {"use_gdc": True, "launch_pdl": True}
