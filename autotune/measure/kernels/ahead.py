"""Compiling in a process without a GPU: the driver for it, and what the compiler reports.

For every provider whose kernels are written in Triton.
"""

from __future__ import annotations

import hashlib
import re
import subprocess
from pathlib import Path
from typing import Any

import triton
from triton.backends.compiler import GPUTarget

from autotune.measure.kernels._base import CompiledKernel

#: A line of ``cuobjdump``: registers, bytes of stack, bytes of local memory, all per thread. ptxas
#: spills to the stack. Spills are counted as Triton counts them, in words of 4 bytes.
_USAGE = re.compile(r"REG:(?P<registers>\d+) STACK:(?P<stack>\d+) .*?LOCAL:(?P<local>\d+)")


class CompileOnlyDriver:
    """A Triton driver that knows its target and nothing else.

    Attributes:
        capability: Compute capability of the target, such as ``(9, 0)``.
    """

    def __init__(self, capability: tuple[int, int]) -> None:
        self.capability = capability

    def get_current_target(self) -> GPUTarget:
        """The target, as the driver of a real GPU gives it."""
        return GPUTarget("cuda", self.get_current_device(), 32)

    def get_current_device(self) -> int:
        """A device number for the target: Triton keeps compiled kernels apart by this number."""
        major, minor = self.capability
        return major * 10 + minor

    def get_current_stream(self, device: int) -> int:
        """0: there are no streams, but Triton asks for one even if nothing is launched."""
        return 0


def compile_for(capability: tuple[int, int]) -> None:
    """Make this process compile for a target; from then on it cannot launch.

    Args:
        capability: Compute capability of the target, such as ``(9, 0)``.
    """
    triton.runtime.driver.set_active(CompileOnlyDriver(capability))


def describe(compiled: Any, grid: tuple[int, ...]) -> CompiledKernel:  # noqa: ANN401 - triton ships no types
    """What the compiler reports of a kernel.

    Args:
        compiled: The kernel, as ``warmup`` returns it.
        grid: The blocks that it will be launched with.
    """
    usage = _resource_usage(compiled)
    shared = compiled.metadata.shared
    launch = (compiled.metadata.num_warps, shared, grid)
    binary = hashlib.sha256(compiled.asm["cubin"])
    binary.update(repr(launch).encode())
    fingerprint = binary.hexdigest()
    if usage is None:
        return CompiledKernel(shared_memory_bytes=shared, fingerprint=fingerprint)
    return CompiledKernel(
        shared_memory_bytes=shared,
        fingerprint=fingerprint,
        registers=int(usage["registers"]),
        spills=(int(usage["stack"]) + int(usage["local"])) // 4,
    )


def _resource_usage(compiled: Any) -> re.Match[str] | None:  # noqa: ANN401 - triton ships no types
    """Ask the ``cuobjdump`` that Triton ships. It takes 3 ms; a compile takes 200 ms or more."""
    tool = Path(triton.__file__).parent / "backends/nvidia/bin/cuobjdump"
    binaries = [path for name, path in compiled.metadata_group.items() if name.endswith(".cubin")]
    command = [str(tool), "--dump-resource-usage", *map(str, binaries)]
    try:
        answer = subprocess.run(  # noqa: S603 - a program of the triton package on its own output
            command, capture_output=True, text=True, timeout=10, check=True
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return _USAGE.search(answer.stdout)
