"""What runs beside a GPU of a Ray cluster: a Runner, asked by the run from afar.

Ray places it, and gives it one GPU. It is used with autotune as it is installed on its host.
"""

from __future__ import annotations

import os
import socket
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import ray

from autotune.errors import AutotuneError, GpuMissing
from autotune.launch.config import KernelConfig
from autotune.launch.environment import Environment
from autotune.launch.shape import KernelShape
from autotune.launch.space import Grid, SearchSpace
from autotune.measure._base import EnoughRule, Runner, StopRule
from autotune.measure.cuda.gpu import has_gpu
from autotune.measure.cuda.runner import CudaRunner
from autotune.measure.cuda.visible import visible_devices
from autotune.measure.measurement import (
    Ceilings,
    Comparison,
    Measurement,
    Replayed,
    RunnerStatus,
)
from autotune.measure.replay import ReplayRunner
from autotune.measure.runners import begin_gpu, gpu_runners
from autotune.version import __version__


@dataclass(frozen=True, slots=True, kw_only=True)
class Joined:
    """What a run must know of a Runner that it asks from afar.

    Attributes:
        environment: Where it measures.
        device: Tells its GPU from all others.
        lookahead: As a Runner has it.
        replayed: The recordings that answer; None where a GPU measures.
        answered: The shapes that were recorded; none where a GPU measures.
        lines: What the user should be told.
    """

    environment: Environment
    device: str
    lookahead: int
    replayed: Replayed | None
    answered: frozenset[KernelShape]
    lines: tuple[str, ...]


#: A search space: as it is, or as the grid and the default that it is made of, which are small.
Space = SearchSpace | tuple[Grid, KernelConfig]

#: A measurement, and the samples that the StopRule was asked about, round by round.
Raced = tuple[Measurement, tuple[tuple[float, ...], ...]]


class Measurer:
    """An actor: one Runner on one GPU. Its methods are those of a Runner."""

    _runner: Runner

    def about(self) -> tuple[str, str]:
        """The host's name, and the version of autotune there."""
        return socket.gethostname(), __version__

    def join(self, kernels: str, recorded: ReplayRunner | None, number: int) -> Joined:
        """Make the Runner.

        Args:
            kernels: Name of the kernel provider, or ``auto``.
            recorded: Answers in place of the GPU; None to measure.
            number: Tells replays of a run apart.

        Raises:
            AutotuneError: The GPU or the kernels cannot be used; the message names the host.
        """
        host, lines = socket.gethostname(), list[str]()
        try:
            if recorded is None:
                self._runner = _gpu_runner(kernels, lines)
                self._runner.device += f" of {host}"
            else:
                self._runner = recorded.named(f"replay {number} of {host}")
        except AutotuneError as error:
            raise AutotuneError(f"Ray's host {host}: {error}") from None
        runner = self._runner
        return Joined(
            environment=runner.environment,
            device=runner.device,
            lookahead=runner.lookahead,
            replayed=runner.replayed,
            answered=frozenset(runner.answered),
            lines=tuple(lines),
        )

    def kernel_space(self, shape: KernelShape, axes: Mapping[str, Sequence[int]]) -> Space:
        """What the Runner's space of a shape is made of."""
        if isinstance(self._runner, CudaRunner):
            return self._runner.grid(shape, axes)
        return self._runner.kernel_space(shape, axes)

    def first_ready(self, pending: Mapping[KernelShape, Sequence[KernelConfig]]) -> KernelShape:
        """The shape that the Runner has ready first."""
        return self._runner.first_ready(pending)

    def measure(self, shape: KernelShape, pending: Sequence[KernelConfig], stop: StopRule) -> Raced:
        """Measure as the Runner does."""
        asked: list[tuple[float, ...]] = []

        def noted(config: KernelConfig, samples_us: Sequence[float]) -> bool:
            asked.append(tuple(samples_us))
            return stop(config, samples_us)

        return self._runner.measure(shape, pending, noted), tuple(asked)

    def expect(self, configs: Mapping[KernelShape, Sequence[KernelConfig]]) -> None:
        """Tell the Runner what will be needed."""
        self._runner.expect(configs)

    def compare(
        self, shape: KernelShape, configs: Sequence[KernelConfig], enough: EnoughRule
    ) -> Comparison:
        """Compare as the Runner does."""
        return self._runner.compare(shape, configs, enough)

    def leave(self, shape: KernelShape) -> None:
        """Let the Runner drop what it holds for a shape."""
        self._runner.leave(shape)

    def ceilings(self) -> Ceilings | None:
        """The ceilings of the Runner's device."""
        return self._runner.ceilings()

    def status(self) -> RunnerStatus | None:
        """The Runner's status; called beside the other methods."""
        return self._runner.status

    def close(self) -> None:
        """End the Runner's processes; called beside the other methods, which then end."""
        if hasattr(self, "_runner"):
            self._runner.close()


def _gpu_runner(kernels: str, lines: list[str]) -> CudaRunner:
    """The runner of the GPU that Ray has given to this process."""
    there = visible_devices()
    if not has_gpu():
        raise GpuMissing("Ray counts a GPU there, but CUDA finds none")
    numbers = ray.get_gpu_ids()
    device = there[0] if there else None
    if device is not None and numbers and str(numbers[0]).isdigit():
        device = replace(device, number=int(numbers[0]))
    begun = begin_gpu(kernels, device, compile_workers=_share_of_cores())
    return gpu_runners(kernels, lines.append, begun)[0]


def _share_of_cores() -> int:
    """The cores of this host, of those that Ray counts, for each of the GPUs that it counts."""
    own = ray.get_runtime_context().get_node_id()
    resources = next(each["Resources"] for each in ray.nodes() if each["NodeID"] == own)
    cores = min(len(os.sched_getaffinity(0)), int(resources.get("CPU", 0)) or 1 << 20)
    return max(1, cores // max(1, int(resources.get("GPU", 1))))
