"""Which Runner a command gets: the GPU's, or a replay's."""

from __future__ import annotations

import importlib.resources
from collections.abc import Sequence
from pathlib import Path

from autotune.environment import has_gpu
from autotune.errors import GpuMissing
from autotune.measure.cuda import CudaRunner
from autotune.measure.replay import ReplayRunner

#: The recording that comes with the package, of the quick-start study.
SHIPPED_RECORDING = "llama-3.1-8b_h100.jsonl.gz"

#: What ``--kernels auto`` means.
_AUTO_KERNELS = "builtin"


def gpu_runner(kernels: str) -> CudaRunner:
    """The runner of the GPU that is here.

    Args:
        kernels: Name of the kernel provider, or ``auto``.

    Raises:
        GpuMissing: There is none.
    """
    if not has_gpu():
        raise GpuMissing("no CUDA GPU here: run this where there is one")
    return CudaRunner(_AUTO_KERNELS if kernels == "auto" else kernels)


def replay_runner(paths: Sequence[Path]) -> ReplayRunner:
    """The runner that answers from recordings; from the one that comes with autotune for none."""
    if paths:
        return ReplayRunner(paths)
    with importlib.resources.as_file(
        importlib.resources.files("autotune") / "recordings" / SHIPPED_RECORDING
    ) as path:
        return ReplayRunner([path])
