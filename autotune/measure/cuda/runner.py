"""The Runner that measures on a CUDA device.

One process searches on the device, another compares the finalists, and the rest compile ahead of
them, for all devices of a run. This module directs the processes and imports neither torch nor
Triton.
"""

from __future__ import annotations

import math
import os
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING

from autotune.launch.config import KernelConfig
from autotune.launch.shape import KernelShape
from autotune.launch.space import Grid, SearchSpace, complete_axes
from autotune.measure._base import EnoughRule, Runner, StopRule
from autotune.measure.cuda.compiler import (
    COMPILE_TIMEOUT_S,
    CompileFailure,
    CompileJob,
    CompilePool,
)
from autotune.measure.cuda.gpu import DeviceMonitor
from autotune.measure.cuda.process import DeviceProcess
from autotune.measure.cuda.protocol import (
    Advice,
    Consult,
    Describe,
    Description,
    MeasureCeilings,
)
from autotune.measure.cuda.referee import Referee
from autotune.measure.cuda.searcher import Searcher
from autotune.measure.cuda.visible import VisibleDevice, device_label
from autotune.measure.cuda.worker import Handler, prepare
from autotune.measure.measurement import (
    Ceilings,
    Comparison,
    Measurement,
    Outcome,
    RunnerStatus,
)

if TYPE_CHECKING:
    from autotune.measure.kernels import CompiledKernel

#: Limit for launching, checking and timing one configuration; the slowest valid ones take 1 s.
CONFIG_TIMEOUT_S = 10.0

#: Configurations that are asked for ahead, beyond one per compile worker, so that none waits.
_MORE_AHEAD = 4


@dataclass(slots=True)
class EngineFigures:
    """What the runner has done until now, for judging its speed.

    Attributes:
        measured: Configurations that were measured or failed.
        reused: Configurations whose compiled launch is the same as that of one measured before.
        device_s: Seconds in which the device's process worked on measurements.
        compare_s: Seconds that comparisons of finalists took.
    """

    measured: int = 0
    reused: int = 0
    device_s: float = 0.0
    compare_s: float = 0.0


@dataclass(frozen=True, slots=True)
class _Owners:
    """The processes that own one GPU."""

    device: VisibleDevice | None
    searcher: Searcher
    referee: Referee

    def close(self) -> None:
        self.searcher.close()
        self.referee.close()


class Processes:
    """The processes of the runners of a run: all start side by side, while their owner goes on.

    Attributes:
        provider: Name of the kernel provider.
        devices: The GPUs; None for the one that a process uses if nothing is said.
        config_timeout_s: Limit for launching and timing one configuration, in seconds.
        compilers: Compile ahead of all others.
        owners: Per GPU a process that owns it for everything but finalists, and one for finalists.
    """

    def __init__(
        self,
        provider: str,
        devices: Sequence[VisibleDevice | None] = (None,),
        *,
        compile_workers: int | None = None,
        config_timeout_s: float = CONFIG_TIMEOUT_S,
        compile_timeout_s: float = COMPILE_TIMEOUT_S,
        device_server: Callable[[str], Handler] | None = None,
    ) -> None:
        """Start the processes that own the devices. Returns at once.

        Args:
            provider: Name of the kernel provider.
            devices: The GPUs, at least one; None for the one that a process uses if nothing is
                said.
            compile_workers: How many; one per core by default.
            config_timeout_s: Limit for launching and timing one configuration, in seconds.
            compile_timeout_s: Limit for compiling one configuration, in seconds.
            device_server: Makes the handler of ``protocol``'s requests in a device's process,
                from the provider's name; that of a real device by default.
        """
        prepare(provider)
        self.provider, self.devices = provider, tuple(devices)
        self.config_timeout_s = config_timeout_s
        self.compilers = CompilePool(
            provider, workers=compile_workers or _cores(), timeout_s=compile_timeout_s
        )
        make_process = partial(DeviceProcess, device_server or make_device_server, provider)
        self.owners = [
            _Owners(
                device,
                Searcher(make_process(device), config_timeout_s=config_timeout_s),
                Referee(make_process(device), config_timeout_s=config_timeout_s),
            )
            for device in self.devices
        ]
        for each in self.owners:
            each.searcher.start()
            each.referee.start()

    def runners(self) -> list[CudaRunner]:
        """A runner for each GPU; to be called once.

        Raises:
            AutotuneError: The kernels cannot be used here.
            WorkerDied: A process cannot start; the message says why.
        """
        try:
            self.compilers.start()
            return [CudaRunner(self, number) for number in range(len(self.devices))]
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        """End all processes."""
        for each in self.owners:
            each.close()
        self.compilers.close()


class CudaRunner(Runner):
    """Measures on one CUDA device."""

    def __init__(self, processes: Processes, number: int = 0) -> None:
        """Take over the processes of a GPU, and wait until one can describe the device.

        Args:
            processes: Those of this GPU belong to the runner from now on. The last runner to be
                closed ends the compilers, too.
            number: Which GPU of theirs.

        Raises:
            AutotuneError: The kernels cannot be used here.
            WorkerDied: A process cannot start; the message says why.
        """
        self._owners = processes.owners[number]
        self._searcher, self._referee = self._owners.searcher, self._owners.referee
        self.compilers = processes.compilers
        self._queue = self.compilers.queue()
        self._twins: dict[KernelShape, dict[str, Measurement]] = {}
        self.figures = EngineFigures()
        self._share = self.compilers.workers / len(processes.devices)
        self.lookahead = math.ceil(self._share) + _MORE_AHEAD
        try:
            self.compilers.start()
            description: Description = self._searcher.ask(Describe())
        except BaseException:
            self.close()
            raise
        self._device, self.environment = description.device, description.environment
        chosen = self._owners.device
        self.device = device_label(0, self._device.uuid) if chosen is None else chosen.label
        self._searcher.device = self.device
        self._monitor: DeviceMonitor | None = None

    def kernel_space(self, shape: KernelShape, axes: Mapping[str, Sequence[int]]) -> SearchSpace:
        """Every configuration that the static rules allow on this device."""
        grid, default = self.grid(shape, axes)
        return SearchSpace.of_grid(grid, default=default)

    def grid(
        self, shape: KernelShape, axes: Mapping[str, Sequence[int]]
    ) -> tuple[Grid, KernelConfig]:
        """What ``kernel_space`` is made of: the grid, and the default."""
        advice: Advice = self._searcher.ask(Consult(shape))
        grid = Grid(
            shape=shape,
            axes=complete_axes(shape.op, axes),
            shared_memory_bytes=self._device.shared_memory_bytes,
            forced=advice.forced,
        )
        return grid, advice.default

    def first_ready(self, pending: Mapping[KernelShape, Sequence[KernelConfig]]) -> KernelShape:
        """Have all configurations compiled, and wait for the first that is.

        Until one is ready, the inputs of the first shape are made.
        """
        jobs = [self._job(shape, config) for shape, those in pending.items() for config in those]
        self._queue.want(jobs)
        self._searcher.open(next(iter(pending)))
        job, _ = self._queue.first_done(jobs)
        return job.shape

    def measure(
        self, shape: KernelShape, pending: Sequence[KernelConfig], stop: StopRule
    ) -> Measurement:
        """Compile all pending configurations ahead, and measure the first that is ready."""
        config, compiled = self._first_compiled(shape, pending)
        self.figures.measured += 1
        if isinstance(compiled, CompileFailure):
            return Measurement(
                shape=shape, config=config, outcome=compiled.outcome, reason=compiled.reason
            )
        twins = self._twins.setdefault(shape, {})
        twin = twins.get(compiled.fingerprint or "")
        if twin is not None:
            self.figures.reused += 1
            return replace(twin, config=config)
        measurement = replace(
            self._launch(shape, config, compiled, stop),
            shared_memory_bytes=compiled.shared_memory_bytes,
            registers=compiled.registers,
            spills=compiled.spills,
        )
        if compiled.fingerprint is not None:
            twins[compiled.fingerprint] = measurement
        return measurement

    def expect(self, configs: Mapping[KernelShape, Sequence[KernelConfig]]) -> None:
        """Have configurations compiled before they are needed, after what is needed now."""
        self._queue.expect(
            [self._job(shape, config) for shape, those in configs.items() for config in those]
        )

    def compare(
        self, shape: KernelShape, configs: Sequence[KernelConfig], enough: EnoughRule
    ) -> Comparison:
        """Time configurations side by side, in a process that launches nothing but finalists.

        Where the device held its clocks down meanwhile, the comparison is repeated after a pause.
        The last one counts; its states say whether the clocks were still held down.
        """
        started = time.monotonic()
        self._referee.start()
        self._queue.want([self._job(shape, config) for config in configs])
        runnable = [config for config in configs if self._can_be_launched(shape, config)]
        comparison = self._searcher.whole(
            lambda: self._referee.compare(shape, runnable, enough), self._referee.replace
        )
        self.figures.compare_s += time.monotonic() - started
        return comparison

    def leave(self, shape: KernelShape) -> None:
        """Drop what is known of a shape: what it asks for again is compiled and measured again."""
        self._searcher.prepare_spare()
        self._queue.forget(shape)
        self._twins.pop(shape, None)

    @property
    def status(self) -> RunnerStatus:
        """The compile queue, and the state of the device."""
        if self._monitor is None:
            self._monitor = DeviceMonitor(self._device.uuid)
        return RunnerStatus(
            compiling=self._queue.compiling,
            waiting=self._queue.waiting,
            device=self._monitor.state(),
            compilers=self._share,
            compiled_s=self._queue.compiled_s,
        )

    def ceilings(self) -> Ceilings:
        """Measure what the device reaches at best, for rooflines."""
        ceilings: Ceilings = self._searcher.ask(MeasureCeilings())
        return ceilings

    def close(self) -> None:
        """End the processes of this GPU, and with the last runner the compilers."""
        self._owners.close()
        self._queue.close()

    # ----------------------------------------------------------------- inside

    def _first_compiled(
        self, shape: KernelShape, configs: Sequence[KernelConfig]
    ) -> tuple[KernelConfig, CompiledKernel | CompileFailure]:
        """Wait for the first of the configurations that is compiled; inputs are made meanwhile."""
        jobs = [self._job(shape, config) for config in configs]
        self._queue.want(jobs)
        self._searcher.open(shape)
        job, compiled = self._queue.first_done(jobs)
        return job.config, compiled

    def _job(self, shape: KernelShape, config: KernelConfig) -> CompileJob:
        return CompileJob(shape, config, self._device.target)

    def _can_be_launched(self, shape: KernelShape, config: KernelConfig) -> bool:
        _, compiled = self._queue.first_done([self._job(shape, config)])
        return (
            not isinstance(compiled, CompileFailure)
            and compiled.shared_memory_bytes <= self._device.shared_memory_bytes
        )

    def _launch(
        self, shape: KernelShape, config: KernelConfig, compiled: CompiledKernel, stop: StopRule
    ) -> Measurement:
        """Launch, check and time a compiled configuration, if the device can launch it at all."""
        limit, needed = self._device.shared_memory_bytes, compiled.shared_memory_bytes
        if needed > limit:
            reason = f"shared_memory: needs {needed} bytes a block, {limit} are there"
            return Measurement(shape=shape, config=config, outcome=Outcome.INVALID, reason=reason)
        started = time.monotonic()
        try:
            return self._searcher.time(shape, config, stop)
        finally:
            self.figures.device_s += time.monotonic() - started


def make_device_server(provider: str) -> Handler:
    """In the device's process: make what answers the requests. Imports torch and Triton there."""
    from autotune.measure.cuda.device import DeviceServer

    return DeviceServer(provider)


def _cores() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
