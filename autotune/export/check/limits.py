"""Limits of well-known GPUs, so that a folder can be checked where its GPU is not at hand."""

from __future__ import annotations

from typing import NamedTuple

from autotune.launch.op import gpu_file_prefix


class Limits(NamedTuple):
    """What decides whether a GPU can launch a configuration.

    Attributes:
        capability: Compute capability, such as ``(9, 0)``.
        shared_memory_bytes: What one thread block may use, opt-in included.
    """

    capability: tuple[int, int]
    shared_memory_bytes: int


#: By a word of the GPU's name. From the "Technical Specifications per Compute Capability" of the
#: CUDA C++ Programming Guide: 163 KiB in 8.0, 99 KiB in 8.6 and 8.9, 227 KiB in 9.0 and 10.0.
_LIMITS = {
    **dict.fromkeys(("A100",), Limits((8, 0), 166_912)),
    **dict.fromkeys(("A10", "A10G", "3090"), Limits((8, 6), 101_376)),
    **dict.fromkeys(("L4", "L40S", "4090"), Limits((8, 9), 101_376)),
    **dict.fromkeys(("H100", "H200", "GH200"), Limits((9, 0), 232_448)),
    **dict.fromkeys(("B200",), Limits((10, 0), 232_448)),
}


def limits_of(gpu: str) -> Limits | None:
    """The limits of a GPU, by its name or its part of a file's name; None if it is not known."""
    words = gpu_file_prefix(gpu).split("_")
    return next((_LIMITS[word] for word in words if word in _LIMITS), None)
