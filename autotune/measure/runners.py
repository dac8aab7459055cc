"""Choosing the Runners of a run: those of the GPUs here, or replays."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from autotune.errors import GpuMissing, InputError, KernelsUnusable
from autotune.launch.environment import Environment
from autotune.measure.cuda.choice import Asked, chosen_devices, number_asked
from autotune.measure.cuda.gpu import has_gpu
from autotune.measure.cuda.runner import CudaRunner, Processes
from autotune.measure.cuda.visible import VisibleDevice
from autotune.measure.replay import ReplayRunner, shipped_recording

#: Replays of one run. More would only wait for one another.
_MOST_REPLAYS = 64


@dataclass(frozen=True, slots=True)
class Begun:
    """Processes that are starting.

    Attributes:
        processes: Those of all GPUs.
        asked: Which GPUs were asked for.
        lines: What the user should be told about them.
        compile_workers: How many compile; None for one per core.
    """

    processes: Processes
    asked: Asked
    lines: Sequence[str]
    compile_workers: int | None = None


def begin_gpus(kernels: str, asked: Asked = None) -> Begun | None:
    """Begin to start what ``gpu_runners`` needs, and return at once.

    Args:
        kernels: As for ``gpu_runners``.
        asked: As for ``gpu_runners``.

    Returns:
        The processes, for ``gpu_runners``; None where this machine has no CUDA GPU.

    Raises:
        InputError: The GPUs asked for cannot be used.
    """
    return _begun(_likely(kernels), asked) if has_gpu() else None


def begin_gpu(kernels: str, device: VisibleDevice | None, *, compile_workers: int) -> Begun:
    """Begin to start what ``gpu_runners`` needs for one GPU, and return at once.

    Args:
        kernels: As for ``gpu_runners``.
        device: The GPU; None for the one that a process uses if nothing is said.
        compile_workers: How many processes compile.
    """
    processes = Processes(_likely(kernels), (device,), compile_workers=compile_workers)
    return Begun(processes, None, (), compile_workers)


def gpu_runners(
    kernels: str, say: Callable[[str], None], begun: Begun | None = None, *, gpus: Asked = None
) -> list[CudaRunner]:
    """A runner for each of this machine's GPUs that are asked for.

    Args:
        kernels: Name of the kernel provider, or ``auto``: vLLM's kernels if they can be used here,
            else autotune's own.
        say: Called with each line that the user should read: GPUs that others use, and with
            ``auto`` whose kernels are launched.
        begun: What ``begin_gpus`` returned; closed if other kernels or GPUs are asked for now.
        gpus: How many GPUs, ``all``, or which of those that are visible by their numbers; None for
            the first that is free. A GPU that others use is left out unless its number is given.

    Raises:
        GpuMissing: This machine has no CUDA GPU.
        InputError: The GPUs asked for cannot be used.
        KernelsUnusable: The kernels asked for cannot be used here.
    """
    begun = begun or begin_gpus(kernels, gpus)
    if begun is None:
        raise GpuMissing("no CUDA GPU here: run this where there is one")
    if begun.asked != gpus or kernels not in ("auto", begun.processes.provider):
        begun.processes.close()
        begun = _begun(begun.processes.provider if kernels == "auto" else kernels, gpus)
    for line in begun.lines:
        say(line)
    processes = begun.processes
    if kernels != "auto":
        return processes.runners()
    reason = "vLLM is not installed here"
    if processes.provider == "vllm":
        try:
            runners = processes.runners()
        except KernelsUnusable as error:
            reason = str(error)
            processes = Processes(
                "builtin", processes.devices, compile_workers=begun.compile_workers
            )
        else:
            say(f"The kernels are those of vLLM {runners[0].environment.provider_version}.")
            return runners
    say(f"The kernels are autotune's own: {reason}.")
    return processes.runners()


def gpu_runner(kernels: str, say: Callable[[str], None]) -> CudaRunner:
    """The runner of the first GPU that is free; see ``gpu_runners``."""
    return gpu_runners(kernels, say)[0]


def _begun(provider: str, asked: Asked) -> Begun:
    lines: list[str] = []
    devices = chosen_devices(asked, lines.append)
    return Begun(Processes(provider, devices), asked, lines)


def _likely(kernels: str) -> str:
    """The provider that is tried first."""
    return "vllm" if kernels == "vllm" or (kernels == "auto" and _has_vllm()) else "builtin"


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


def replay_workers(runner: ReplayRunner, asked: Asked) -> list[ReplayRunner]:
    """Runners that replay side by side what one has read.

    Args:
        runner: Has read the recordings.
        asked: How many; None for one.

    Raises:
        InputError: More is asked for than a number, or too many.
    """
    count = 1 if asked is None else asked
    if not isinstance(count, int) or count > _MOST_REPLAYS:
        raise InputError(
            f"--gpus {number_asked(asked)} is for GPUs, and a recording answers in their place: "
            f"give how many replays are to work side by side, 1 to {_MOST_REPLAYS}"
        )
    return [runner] if count == 1 else [runner.named(f"replay {n}") for n in range(count)]


def stand_in(kernels: str, gpus: Asked = None) -> ReplayRunner:
    """The recording that autotune ships, for a machine without a GPU.

    Args:
        kernels: The kernel provider that was asked for, or ``auto``.
        gpus: The GPUs that were asked for; None where they were not.

    Raises:
        GpuMissing: GPUs were asked for, or other kernels than those that were recorded.
    """
    if gpus is not None:
        raise GpuMissing(
            f"no CUDA GPU here: got --gpus {number_asked(gpus)}; run this where there are some, "
            "leave --gpus out, or give a recording with --replay"
        )
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
