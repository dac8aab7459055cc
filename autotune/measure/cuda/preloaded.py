"""Imported in the process that workers are forked from, so that they need not import it.

What fails here fails again in the worker that needs it, which says why. Nothing here may initialize
CUDA: a forked process could not use it then.
"""

from __future__ import annotations

import contextlib
import os

from autotune.measure.cuda.worker import PREPARED

# Triton reads it when a kernel is defined; the interpreter compiles nothing.
os.environ.pop("TRITON_INTERPRET", None)
# Without it torch initializes CUDA to count devices.
os.environ.setdefault("PYTORCH_NVML_BASED_CUDA_CHECK", "1")

with contextlib.suppress(Exception):
    from autotune.measure.cuda import device  # noqa: F401
    from autotune.measure.kernels import provider

    provider(os.environ.get(PREPARED, "builtin"))
