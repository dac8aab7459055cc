"""The Runner that measures on a CUDA device.

One process searches on the device, another compares the finalists, and the rest compile ahead of
them. This module directs the processes and imports neither torch nor Triton.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING, Any

from autotune.errors import WorkerDied
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
from autotune.measure.cuda.process import REQUEST_TIMEOUT_S, DeviceProcess
from autotune.measure.cuda.protocol import (
    Advice,
    Consult,
    Describe,
    Description,
    Failure,
    MeasureCeilings,
    More,
    Start,
    Started,
)
from autotune.measure.cuda.referee import Referee
from autotune.measure.cuda.worker import Handler, prepare
from autotune.measure.measurement import (
    Ceilings,
    Comparison,
    Measurement,
    Outcome,
    RunnerStatus,
)
from autotune.measure.racing import TOO_SLOW_REASON, race

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


class Processes:
    """The processes of a runner: all start side by side, while their owner goes on.

    Attributes:
        provider: Name of the kernel provider.
        config_timeout_s: Limit for launching and timing one configuration, in seconds.
        searcher: Owns the device, for everything but finalists.
        referee: Owns the device, for finalists.
        compilers: Compile ahead of both.
    """

    def __init__(
        self,
        provider: str,
        *,
        compile_workers: int | None = None,
        config_timeout_s: float = CONFIG_TIMEOUT_S,
        compile_timeout_s: float = COMPILE_TIMEOUT_S,
        device_server: Callable[[str], Handler] | None = None,
    ) -> None:
        """Start the processes that own the device. Returns at once.

        Args:
            provider: Name of the kernel provider.
            compile_workers: How many; one per core by default.
            config_timeout_s: Limit for launching and timing one configuration, in seconds.
            compile_timeout_s: Limit for compiling one configuration, in seconds.
            device_server: Makes the handler of ``protocol``'s requests in the device's process,
                from the provider's name; that of a real device by default.
        """
        prepare(provider)
        self.provider, self.config_timeout_s = provider, config_timeout_s
        self.compilers = CompilePool(
            provider, workers=compile_workers or _cores(), timeout_s=compile_timeout_s
        )
        make_process = partial(
            DeviceProcess, device_server or make_device_server, provider, self.compilers
        )
        self.searcher = make_process()
        self.referee = Referee(make_process(), config_timeout_s=config_timeout_s)
        self.searcher.start()
        self.referee.start()

    def close(self) -> None:
        """End all processes."""
        self.searcher.close()
        self.referee.close()
        self.compilers.close()


class CudaRunner(Runner):
    """Measures on the current CUDA device."""

    def __init__(self, processes: Processes) -> None:
        """Take over processes, and wait until the device's can describe the device.

        Args:
            processes: Belong to the runner from now on.

        Raises:
            AutotuneError: The kernels cannot be used here.
            WorkerDied: A process cannot start; the message says why.
        """
        self._processes = processes
        self._timeout_s = processes.config_timeout_s
        self._searcher, self._referee = processes.searcher, processes.referee
        self.compilers = processes.compilers
        self._twins: dict[KernelShape, dict[str, Measurement]] = {}
        self.figures = EngineFigures()
        self.lookahead = self.compilers.workers + _MORE_AHEAD
        try:
            self.compilers.start()
            description: Description = self._searcher.ask(Describe(), REQUEST_TIMEOUT_S)
        except BaseException:
            self.close()
            raise
        self._device, self.environment = description.device, description.environment
        self._monitor: DeviceMonitor | None = None

    def kernel_space(self, shape: KernelShape, axes: Mapping[str, Sequence[int]]) -> SearchSpace:
        """Every configuration that the static rules allow on this device."""
        advice: Advice = self._searcher.ask(Consult(shape), REQUEST_TIMEOUT_S)
        grid = Grid(
            shape=shape,
            axes=complete_axes(shape.op, axes),
            shared_memory_bytes=self._device.shared_memory_bytes,
            forced=advice.forced,
        )
        return SearchSpace.of_grid(grid, default=advice.default)

    def first_ready(self, pending: Mapping[KernelShape, Sequence[KernelConfig]]) -> KernelShape:
        """Have all configurations compiled, and wait for the first that is.

        Until one is ready, the inputs of the first shape are made.
        """
        jobs = [self._job(shape, config) for shape, those in pending.items() for config in those]
        self.compilers.want(jobs)
        self._searcher.open(next(iter(pending)))
        job, _ = self.compilers.first_done(jobs)
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

    def compare(
        self, shape: KernelShape, configs: Sequence[KernelConfig], enough: EnoughRule
    ) -> Comparison:
        """Time configurations side by side, in a process that launches nothing but finalists.

        Where the device held its clocks down meanwhile, the comparison is repeated after a pause.
        The last one counts; its states say whether the clocks were still held down.
        """
        started = time.monotonic()
        self._referee.start()
        runnable = [config for config in configs if self._can_be_launched(shape, config)]
        comparison = self._referee.compare(shape, runnable, enough)
        self.figures.compare_s += time.monotonic() - started
        return comparison

    def leave(self, shape: KernelShape) -> None:
        """Drop what is known of a shape: what it asks for again is compiled and measured again."""
        self._searcher.prepare_spare()
        self.compilers.forget(shape)
        self._twins.pop(shape, None)

    @property
    def status(self) -> RunnerStatus:
        """The compile queue, and the state of the device."""
        if self._monitor is None:
            self._monitor = DeviceMonitor(self._device.uuid)
        return RunnerStatus(
            compiling=self.compilers.compiling,
            waiting=self.compilers.waiting,
            device=self._monitor.state(),
        )

    def ceilings(self) -> Ceilings:
        """Measure what the device reaches at best, for rooflines."""
        ceilings: Ceilings = self._searcher.ask(MeasureCeilings(), REQUEST_TIMEOUT_S)
        return ceilings

    def close(self) -> None:
        """End all processes."""
        self._processes.close()

    # ----------------------------------------------------------------- inside

    def _first_compiled(
        self, shape: KernelShape, configs: Sequence[KernelConfig]
    ) -> tuple[KernelConfig, CompiledKernel | CompileFailure]:
        """Wait for the first of the configurations that is compiled; inputs are made meanwhile."""
        jobs = [self._job(shape, config) for config in configs]
        self.compilers.want(jobs)
        self._searcher.open(shape)
        job, compiled = self.compilers.first_done(jobs)
        return job.config, compiled

    def _job(self, shape: KernelShape, config: KernelConfig) -> CompileJob:
        return CompileJob(shape, config, self._device.target)

    def _can_be_launched(self, shape: KernelShape, config: KernelConfig) -> bool:
        _, compiled = self.compilers.first_done([self._job(shape, config)])
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
            return self._time(shape, config, stop)
        finally:
            self.figures.device_s += time.monotonic() - started

    def _time(self, shape: KernelShape, config: KernelConfig, stop: StopRule) -> Measurement:
        def ended(outcome: Outcome, reason: str = "", **facts: Any) -> Measurement:  # noqa: ANN401 - fields differ in type
            return Measurement(shape=shape, config=config, outcome=outcome, reason=reason, **facts)

        deadline = time.monotonic() + self._timeout_s
        clock = _RemoteClock(self._searcher, shape, config, deadline=deadline)
        try:
            samples, cut = race(clock.take, lambda so_far: stop(config, so_far))
        except _NotTimed as error:
            failure = error.failure
            if failure.is_lost:
                self._searcher.replace()
            return ended(failure.outcome, failure.reason, relative_error=failure.relative_error)
        except WorkerDied as error:
            self._searcher.replace()
            if error.timed_out:
                reason = f"not launched and timed within {self._timeout_s:g} s"
                return ended(Outcome.TIMED_OUT, reason)
            return ended(Outcome.WORKER_DIED, str(error))
        facts: dict[str, Any] = {"samples_us": samples, "relative_error": clock.relative_error}
        if cut:
            return ended(Outcome.TOO_SLOW, TOO_SLOW_REASON, **facts)
        return ended(Outcome.OK, **facts)


class _RemoteClock:
    """Times one configuration in the device's process; the first samples come with the check."""

    def __init__(
        self, process: DeviceProcess, shape: KernelShape, config: KernelConfig, *, deadline: float
    ) -> None:
        self._process, self._deadline = process, deadline
        self._shape, self._config = shape, config
        self.relative_error: float | None = None

    def take(self, count: int) -> Sequence[float]:
        """Take further samples, microseconds per launch.

        Raises:
            _NotTimed: The configuration failed.
            WorkerDied: The process ended, or the deadline has passed.
        """
        is_first = self.relative_error is None
        request = Start(self._shape, self._config, count) if is_first else More(count)
        answer: Started | Failure | tuple[float, ...]
        answer = self._process.ask(request, self._deadline - time.monotonic())
        if isinstance(answer, Failure):
            raise _NotTimed(answer)
        if isinstance(answer, Started):
            self.relative_error = answer.relative_error
            return answer.samples_us
        return answer


def make_device_server(provider: str) -> Handler:
    """In the device's process: make what answers the requests. Imports torch and Triton there."""
    from autotune.measure.cuda.device import DeviceServer

    return DeviceServer(provider)


class _NotTimed(Exception):
    """Carries a failure out of a callback; never leaves this module."""

    def __init__(self, failure: Failure) -> None:
        super().__init__(failure.reason)
        self.failure = failure


def _cores() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
