"""What LoRA's kernels take of a forward pass, by the times that a folder keeps of them."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

from autotune.choose.forward import forward_passes
from autotune.errors import InputError
from autotune.export.names import prefixes_in
from autotune.export.provenance import provenance_in, read_entries, read_environment
from autotune.launch.op import gpu_file_prefix
from autotune.launch.shape import KernelShape
from autotune.plan.study import StudyPlan
from autotune.serve.gains import Predicted


class Kept(NamedTuple):
    """A tuned entry's times, as the folder keeps them, microseconds."""

    shape: KernelShape
    default_latency_us: float | None
    latency_us: float


def predicted_in(folder: Path, gpu: str, plan: StudyPlan) -> dict[int, Predicted]:
    """By batch size, what LoRA's kernels take of a forward pass, and how much less with the folder.

    Args:
        folder: The folder of tuned files.
        gpu: The GPU's name; empty to take the only one that the folder is for.
        plan: Says how often a forward pass launches each kernel.

    Returns:
        Nothing where the folder keeps no times, or not those of every kernel.

    Raises:
        InputError: What the folder keeps cannot be read.
    """
    prefixes = [gpu_file_prefix(gpu)] if gpu else prefixes_in(folder)
    path = provenance_in(folder, prefixes[0]) if prefixes else None
    environment = read_environment(path) if path is not None else None
    if path is None or environment is None:
        return {}
    runs: dict[KernelShape, int] = {}
    sampled = set(plan.workload.sampled)
    for shape, count in plan.runs.items():
        runs[shape.without_batch] = count
    beside = plan.model is not None and plan.model.dual_stream and not plan.model.fully_sharded
    passes = forward_passes(_kept(path), runs, environment, sampled=sampled)
    return {
        each.num_tokens: Predicted(
            kernels_ms=None if beside else each.default_us / 1e3,
            saved_ms=(each.default_us - each.tuned_us) / 1e3,
        )
        for each in passes
        if each.default_us is not None
    }


def _kept(path: Path) -> Iterator[Kept]:
    for of_file in read_entries(path).values():
        for entry in of_file.values():
            kept = _row(entry)
            if kept is not None:
                yield kept


def _row(entry: dict[str, Any]) -> Kept | None:
    """An entry's times; None where it has none that can be used."""
    try:
        shape = KernelShape.from_mapping(entry["shape"])
    except (KeyError, TypeError, InputError):
        return None
    tuned, default = entry.get("latency_us"), entry.get("default_latency_us")
    if not isinstance(tuned, int | float) or not isinstance(default, int | float | None):
        return None
    return Kept(shape, default, tuned)
