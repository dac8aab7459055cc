"""Choosing a Runner: that of the GPU, or a replay."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Sequence
from pathlib import Path

from autotune.errors import GpuMissing, KernelsUnusable
from autotune.launch.environment import Environment
from autotune.measure.cuda.gpu import has_gpu
from autotune.measure.cuda.runner import CudaRunner, Processes
from autotune.measure.replay import ReplayRunner, shipped_recording


def begin_gpu(kernels: str) -> Processes | None:
    """Begin to start what ``gpu_runner`` needs, and return at once.

    Args:
        kernels: As for ``gpu_runner``.

    Returns:
        The processes, for ``gpu_runner``; None where this machine has no CUDA GPU.
    """
    if not has_gpu():
        return None
    is_vllm = kernels == "vllm" or (kernels == "auto" and _has_vllm())
    return Processes("vllm" if is_vllm else "builtin")


def gpu_runner(
    kernels: str, say: Callable[[str], None], begun: Processes | None = None
) -> CudaRunner:
    """The runner of this machine's GPU.

    Args:
        kernels: Name of the kernel provider, or ``auto``: vLLM's kernels if they can be used here,
            else autotune's own.
        say: With ``auto``, called with one line that says whose kernels are launched.
        begun: What ``begin_gpu`` returned; closed if other kernels are asked for now.

    Raises:
        GpuMissing: This machine has no CUDA GPU.
        KernelsUnusable: The kernels asked for cannot be used here.
    """
    processes = begun or begin_gpu(kernels)
    if processes is None:
        raise GpuMissing("no CUDA GPU here: run this where there is one")
    if kernels not in ("auto", processes.provider):
        processes.close()
        processes = Processes(kernels)
    if kernels != "auto":
        return CudaRunner(processes)
    reason = "vLLM is not installed here"
    if processes.provider == "vllm":
        try:
            runner = CudaRunner(processes)
        except KernelsUnusable as error:
            reason = str(error)
            processes = Processes("builtin")
        else:
            say(f"The kernels are those of vLLM {runner.environment.provider_version}.")
            return runner
    say(f"The kernels are autotune's own: {reason}.")
    return CudaRunner(processes)


def check_installed(kernels: str) -> None:
    """Refuse vLLM's kernels where no vLLM is installed.

    Args:
        kernels: Name of the kernel provider.

    Raises:
        KernelsUnusable: There is no vLLM.
    """
    if kernels == "vllm" and not _has_vllm():
        raise KernelsUnusable(
            "vLLM is not installed here, and its kernels are what a server launches: run this in "
            "the server's environment"
        )


def _has_vllm() -> bool:
    """Whether a vLLM is installed. It is not imported, since that takes seconds."""
    found = importlib.util.find_spec("vllm")
    return found is not None and found.origin is not None


def replay_runner(paths: Sequence[Path]) -> ReplayRunner:
    """The runner that replays recordings; without any, the recording that autotune ships."""
    return ReplayRunner(paths or [shipped_recording()])


def replay_workers(paths: Sequence[Path], count: int) -> list[ReplayRunner]:
    """Runners that replay the same recordings side by side; see ``replay_runner``."""
    runner = replay_runner(paths)
    return [runner] if count == 1 else [runner.named(f"replay {n}") for n in range(count)]


def stand_in(kernels: str) -> ReplayRunner:
    """The recording that autotune ships, for a machine without a GPU.

    Args:
        kernels: The kernel provider that was asked for, or ``auto``.

    Raises:
        GpuMissing: Other kernels were asked for than those that were recorded.
    """
    runner = replay_runner(())
    recorded = runner.environment.provider
    if kernels not in ("auto", recorded):
        raise GpuMissing(
            f"no CUDA GPU here to launch {kernels}'s kernels on, and the recording that comes with "
            f"autotune is of {recorded} kernels: got --kernels {kernels}; run this where there is "
            "a GPU, leave --kernels out, or give a recording with --replay"
        )
    return runner


def replay_runners(paths: Sequence[Path]) -> list[ReplayRunner]:
    """Runners that replay recordings, one for each environment; see ``replay_runner``."""
    groups: list[list[Path]] = []
    environments: list[Environment] = []
    for path in paths:
        environment = ReplayRunner([path]).environment
        if environment not in environments:
            environments.append(environment)
            groups.append([])
        groups[environments.index(environment)].append(path)
    return [replay_runner(group) for group in groups or [[]]]
