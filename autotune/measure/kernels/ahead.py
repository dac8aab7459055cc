"""Compiling ahead in a process without a GPU: the driver it needs, and what the compiler says.

Serves every provider whose kernels are Triton's.
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

#: As ``cuobjdump`` prints it: registers and bytes of local memory, both per thread. ptxas spills to
#: the stack; Triton's own count of spills is local memory in words of 4 bytes, too.
_USAGE = re.compile(r"REG:(?P<registers>\d+) STACK:(?P<stack>\d+) .*?LOCAL:(?P<local>\d+)")


class CompileOnlyDriver:
    """An active Triton driver that knows its target and nothing else.

    Attributes:
        capability: Compute capability of the target, such as ``(9, 0)``.
    """

    def __init__(self, capability: tuple[int, int]) -> None:
        self.capability = capability

    def get_current_target(self) -> GPUTarget:
        """The target, as the real driver of such a GPU gives it."""
        return GPUTarget("cuda", self.get_current_device(), 32)

    def get_current_device(self) -> int:
        """The target's number for a device: Triton keeps what it compiled apart by device."""
        major, minor = self.capability
        return major * 10 + minor

    def get_current_stream(self, device: int) -> int:
        """There are no streams; Triton asks before it sees that nothing is launched."""
        return 0


def compile_for(capability: tuple[int, int]) -> None:
    """Let this process compile for a target, and no longer launch.

    Args:
        capability: Compute capability of the target, such as ``(9, 0)``.
    """
    triton.runtime.driver.set_active(CompileOnlyDriver(capability))


def describe(compiled: Any, grid: tuple[int, ...]) -> CompiledKernel:  # noqa: ANN401 - triton ships no types
    """What the compiler says of a kernel that Triton has compiled.

    Args:
        compiled: What ``warmup`` returned.
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
    """Ask the ``cuobjdump`` that comes with Triton: 3 ms beside a compile's 200 and more."""
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
