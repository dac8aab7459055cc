"""Imported in the process that compile workers are forked from, so that they need not import it.

What fails here fails again in the worker that needs it, which says why.
"""

from __future__ import annotations

import contextlib
import os

from autotune.measure.cuda.worker import PREPARED

# As in each of the workers: without a GPU, and with kernels that can be compiled.
os.environ["CUDA_VISIBLE_DEVICES"] = ""
os.environ.pop("TRITON_INTERPRET", None)

with contextlib.suppress(Exception):
    from autotune.measure.kernels import provider

    provider(os.environ.get(PREPARED, "builtin"))
