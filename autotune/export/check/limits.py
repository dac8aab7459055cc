"""Limits of GPUs that are known by name, for checks where the GPU is not at hand."""

from __future__ import annotations

from typing import NamedTuple

from autotune.launch.op import gpu_file_prefix


class Limits(NamedTuple):
    """What a thread block may use of a GPU's shared memory, opt-in included, and its generation."""

    shared_memory_bytes: int
    is_hopper: bool = False


#: By a word of the GPU's name. From the "Technical Specifications per Compute Capability" of the
#: CUDA C++ Programming Guide: 163 KiB in 8.0, 99 KiB in 8.6 and 8.9, 227 KiB in 9.0 and 10.0.
_LIMITS = {
    **dict.fromkeys(("A100",), Limits(166_912)),
    **dict.fromkeys(("A10", "A10G", "L4", "L40S", "4090", "3090"), Limits(101_376)),
    **dict.fromkeys(("H100", "H200", "GH200"), Limits(232_448, is_hopper=True)),
    **dict.fromkeys(("B200",), Limits(232_448)),
}


def limits_of(gpu: str) -> Limits | None:
    """The limits of a GPU by its name, or by what its files are named by; None if not known."""
    words = gpu_file_prefix(gpu).split("_")
    return next((_LIMITS[word] for word in words if word in _LIMITS), None)
