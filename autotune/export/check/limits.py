"""Limits of well-known GPUs, so that a folder can be checked where its GPU is not at hand."""

from __future__ import annotations

import re
from typing import NamedTuple

from autotune.errors import InputError
from autotune.launch.environment import Target
from autotune.launch.op import gpu_file_prefix


class Limits(NamedTuple):
    """What decides whether a GPU can launch a configuration.

    Attributes:
        capability: Compute capability, such as ``(9, 0)``.
        shared_memory_bytes: What one thread block may use, opt-in included.
    """

    capability: tuple[int, int]
    shared_memory_bytes: int


#: KiB of shared memory that a thread block may use, by compute capability: "Maximum amount of
#: shared memory per thread block" in the "Technical Specifications per Compute Capability" of the
#: CUDA C++ Programming Guide 13.
_KIB = {
    (7, 0): 96,
    (7, 5): 64,
    (8, 0): 163,
    (8, 6): 99,
    (8, 7): 163,
    (8, 9): 99,
    (9, 0): 227,
    (10, 0): 227,
    (10, 3): 227,
    (12, 0): 99,
    (12, 1): 99,
}

#: By compute capability the words by which a GPU's name is told, several joined by ``_``, as
#: developer.nvidia.com/cuda-gpus and NVIDIA's data sheets list them. The first that fits counts:
#: "Quadro RTX 6000", "RTX 6000 Ada" and "RTX PRO 6000 Blackwell" are three generations.
_NAMES = {
    (12, 0): "RTX_BLACKWELL RTX_PRO 5090 5080 5070 5060 5050 6000D",
    (8, 9): "RTX_ADA L4 L40 L40S L40G L20 L2 4090 4080 4070 4060 4050",
    (7, 5): "T4 T4G QUADRO_RTX TITAN_RTX 2080 2070 2060",
    (7, 0): "V100 V100S TITAN_V GV100",
    (8, 0): "A100 A100X A800 A30 A30X",
    (8, 6): "A10 A10G A10M A16 A2 A40 A6000 A5500 A5000 A4500 A4000 A2000 3090 3080 3070 3060 3050",
    (8, 7): "ORIN",
    (9, 0): "H100 H100L H200 H800 H20 GH200",
    (10, 0): "B100 B200 GB200",
    (10, 3): "B300 GB300",
    (12, 1): "GB10",
}


#: Multiprocessors of GPUs that serve models, by words of their names, the longest first: NVIDIA's
#: data sheets.
_MULTIPROCESSORS = {
    "H100_PCIE": 114,
    "H100": 132,
    "H200": 132,
    "GH200": 132,
    "H800": 132,
    "H20": 78,
    "A100": 108,
    "A800": 108,
    "A30": 56,
    "A10G": 80,
    "A10": 72,
    "A40": 84,
    "L4": 58,
    "L40": 142,
    "L40S": 142,
    "T4": 40,
    "V100": 80,
    "B200": 148,
    "GB200": 148,
}


def target_of(gpu: str) -> Target | None:
    """What a GPU's kernels are compiled for, by its name; None if it is not known."""
    limits, words = limits_of(gpu), set(gpu_file_prefix(gpu).upper().split("_"))
    for name, count in _MULTIPROCESSORS.items():
        if limits is not None and words.issuperset(name.split("_")):
            return Target(
                capability=limits.capability,
                multiprocessors=count,
                shared_memory_bytes=limits.shared_memory_bytes,
            )
    return None


def target_of_arch(arch: str, gpu: Target | None = None) -> Target:
    """What to compile for, by an architecture's name.

    Args:
        arch: Such as ``sm_90``.
        gpu: The GPU, whose number of multiprocessors is taken; an H100's if it is not known.

    Raises:
        InputError: There is no such architecture.
    """
    match = re.fullmatch(r"sm_(\d+)(\d)a?", arch, re.ASCII)
    capability = (int(match[1]), int(match[2])) if match else (0, 0)
    if capability not in _KIB:
        known = ", ".join(f"sm_{major}{minor}" for major, minor in _KIB)
        raise InputError(f"--gpu-arch: unknown architecture: got {arch!r}; use one of {known}")
    return Target(
        capability=capability,
        multiprocessors=gpu.multiprocessors if gpu else _MULTIPROCESSORS["H100"],
        shared_memory_bytes=_KIB[capability] * 1024,
    )


def limits_of(gpu: str) -> Limits | None:
    """The limits of a GPU, by its name or its part of a file's name; None if it is not known."""
    words = set(gpu_file_prefix(gpu).upper().split("_"))
    for capability, names in _NAMES.items():
        if any(words.issuperset(name.split("_")) for name in names.split()):
            return Limits(capability, _KIB[capability] * 1024)
    return None
