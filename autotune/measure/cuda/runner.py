"""The Runner that measures on a CUDA device.

One process owns the device, the others compile ahead of it; this module directs them and imports
neither torch nor Triton.
"""

from __future__ import annotations

import os
import random
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
from autotune.measure.cuda.compiler import COMPILE_TIMEOUT_S, CompileFailure, CompilePool, Job
from autotune.measure.cuda.gpu import DeviceMonitor
from autotune.measure.cuda.process import SHAPE_TIMEOUT_S, DeviceProcess
from autotune.measure.cuda.protocol import (
    Advice,
    Consult,
    Describe,
    Description,
    Failure,
    MeasureCeilings,
    More,
    Prepare,
    Start,
    Started,
    TakeTurns,
    Turns,
)
from autotune.measure.cuda.worker import Handler
from autotune.measure.measurement import (
    Ceilings,
    Comparison,
    DeviceState,
    Measurement,
    Outcome,
    RunnerStatus,
)
from autotune.measure.racing import TOO_SLOW_REASON, race

if TYPE_CHECKING:
    from autotune.measure.kernels import CompiledKernel

#: Limit for launching, checking and timing one configuration; the slowest valid ones take 1 s.
CONFIG_TIMEOUT_S = 10.0

#: Rounds of a comparison between two looks at whether it is enough, and of all of them.
TURNS_AT_ONCE = 20
MOST_TURNS = 200

#: A comparison begins no further rounds after so long, seconds. Samples of a launch that takes
#: milliseconds spread little, and a dozen finalists of it would take a minute for all rounds.
COMPARE_S = 5.0

#: How often a comparison is made again because the device held its clocks down, and after how long.
THROTTLED_RETRIES = 2
COOL_DOWN_S = 5.0

#: Configurations beyond one per compile worker that are asked for ahead, so that none waits.
_SPARE = 4


@dataclass(slots=True)
class EngineFigures:
    """What the engine did, for judging it.

    Attributes:
        measured: Configurations that were launched or failed to be.
        reused: Configurations whose launch was the very same as another's.
        device_s: Seconds in which the device's process worked on measurements.
        compare_s: Seconds that comparisons of finalists took.
    """

    measured: int = 0
    reused: int = 0
    device_s: float = 0.0
    compare_s: float = 0.0


class CudaRunner(Runner):
    """Measures on the current CUDA device."""

    def __init__(
        self,
        provider: str,
        *,
        compile_workers: int | None = None,
        config_timeout_s: float = CONFIG_TIMEOUT_S,
        compile_timeout_s: float = COMPILE_TIMEOUT_S,
        device_server: Callable[[str], Handler] | None = None,
    ) -> None:
        """Start the device's process and the compile workers.

        Args:
            provider: Name of the kernel provider.
            compile_workers: How many; one per core where not given.
            config_timeout_s: Limit for launching and timing one configuration, in seconds.
            compile_timeout_s: Limit for compiling one, in seconds.
            device_server: Makes what answers ``protocol``'s requests in the device's process, from
                the provider's name; a real device where not given.

        Raises:
            WorkerDied: A process cannot start; its message says why.
        """
        self._timeout_s = config_timeout_s
        self._shape: KernelShape | None = None
        self._twins: dict[str, Measurement] = {}
        self.figures = EngineFigures()
        workers = compile_workers or _cores()
        self.compilers = CompilePool(provider, workers=workers, timeout_s=compile_timeout_s)
        self.lookahead = workers + _SPARE
        make_process = partial(
            DeviceProcess, device_server or make_device_server, provider, self.compilers
        )
        self._searcher, self._referee = make_process(), make_process()
        try:
            self._searcher.start()
            description: Description = self._searcher.ask(Describe(), SHAPE_TIMEOUT_S)
        except BaseException:
            self.close()
            raise
        self._device, self.environment = description.device, description.environment
        self._monitor: DeviceMonitor | None = None

    def kernel_space(self, shape: KernelShape, axes: Mapping[str, Sequence[int]]) -> SearchSpace:
        """Every configuration that the static rules leave for this device."""
        advice: Advice = self._searcher.ask(Consult(shape), SHAPE_TIMEOUT_S)
        grid = Grid(
            shape=shape,
            axes=complete_axes(shape.op, axes),
            shared_memory_bytes=self._device.shared_memory_bytes,
            forced=advice.forced,
        )
        return SearchSpace.of_grid(grid, default=advice.default)

    def measure(
        self, shape: KernelShape, pending: Sequence[KernelConfig], stop: StopRule
    ) -> Measurement:
        """Compile all pending configurations ahead, and measure the first that is ready."""
        self._turn_to(shape)
        jobs = [self._job(shape, config) for config in pending]
        for job in jobs:  # compiled while the inputs are made
            self.compilers.submit(job)
        self._searcher.open(shape)
        self._searcher.prepare_spare()
        self._referee.start()
        job, compiled = self.compilers.first_done(jobs)
        config = job.config
        self.figures.measured += 1
        if isinstance(compiled, CompileFailure):
            return Measurement(
                shape=shape, config=config, outcome=compiled.outcome, reason=compiled.reason
            )
        twin = self._twins.get(compiled.fingerprint or "")
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
            self._twins[compiled.fingerprint] = measurement
        return measurement

    def compare(
        self, shape: KernelShape, configs: Sequence[KernelConfig], enough: EnoughRule
    ) -> Comparison:
        """Time configurations side by side, in a process that launches nothing but finalists.

        Where the device held its clocks down meanwhile it is done again after a pause; the last
        comparison counts, and its states tell.
        """
        started = time.monotonic()
        self._turn_to(shape)
        self._referee.start()
        runnable = [config for config in configs if self._is_compiled(shape, config)]
        comparison = self._compare_once(shape, runnable, enough)
        for _ in range(THROTTLED_RETRIES):
            if not comparison.is_throttled:
                break
            time.sleep(COOL_DOWN_S)
            comparison = self._compare_once(shape, runnable, enough)
        self.figures.compare_s += time.monotonic() - started
        return comparison

    def forget(self) -> None:
        """Drop what is known of the present shape, so that all of it is measured anew."""
        if self._shape is not None:
            self.compilers.forget(self._shape)
        self._twins.clear()
        self._shape = None

    @property
    def status(self) -> RunnerStatus:
        """The compile queue, and the device as its driver sees it."""
        if self._monitor is None:
            self._monitor = DeviceMonitor(self._device.uuid)
        return RunnerStatus(
            compiling=self.compilers.compiling,
            waiting=self.compilers.waiting,
            device=self._monitor.state(),
        )

    def ceilings(self) -> Ceilings:
        """Measure what the device reaches at best, for rooflines."""
        ceilings: Ceilings = self._searcher.ask(MeasureCeilings(), SHAPE_TIMEOUT_S)
        return ceilings

    def close(self) -> None:
        """End all processes."""
        self._searcher.close()
        self._referee.close()
        self.compilers.close()

    # ----------------------------------------------------------------- measuring

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

        launch = _Launch(self._searcher, config, deadline=time.monotonic() + self._timeout_s)
        try:
            samples, cut = race(launch.take, lambda so_far: stop(config, so_far))
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
        facts: dict[str, Any] = {"samples_us": samples, "relative_error": launch.relative_error}
        if cut:
            return ended(Outcome.TOO_SLOW, TOO_SLOW_REASON, **facts)
        return ended(Outcome.OK, **facts)

    def _turn_to(self, shape: KernelShape) -> None:
        """Forget what belongs to another shape."""
        if self._shape != shape:
            self.forget()
        self._shape = shape

    def _job(self, shape: KernelShape, config: KernelConfig) -> Job:
        return Job(shape, config, self._device.target)

    # ----------------------------------------------------------------- comparing

    def _is_compiled(self, shape: KernelShape, config: KernelConfig) -> bool:
        _, compiled = self.compilers.first_done([self._job(shape, config)])
        return (
            not isinstance(compiled, CompileFailure)
            and compiled.shared_memory_bytes <= self._device.shared_memory_bytes
        )

    def _compare_once(
        self, shape: KernelShape, configs: Sequence[KernelConfig], enough: EnoughRule
    ) -> Comparison:
        ready = list(configs)
        while ready:
            try:
                ready = self._prepare(shape, ready)
                return self._take_turns(ready, enough) if ready else Comparison(samples_us={})
            except _Fatal as error:
                self._referee.replace()
                ready.remove(error.config)
        return Comparison(samples_us={})

    def _prepare(self, shape: KernelShape, configs: Sequence[KernelConfig]) -> list[KernelConfig]:
        """Those of the configurations that the device's process holds ready now."""
        self._referee.open(shape)
        ready = []
        for config in configs:
            try:
                failure: Failure | None = self._referee.ask(Prepare(config), self._timeout_s)
            except WorkerDied:
                raise _Fatal(config) from None
            if failure is None:
                ready.append(config)
            elif failure.is_lost:
                raise _Fatal(config)
        return ready

    def _take_turns(self, configs: Sequence[KernelConfig], enough: EnoughRule) -> Comparison:
        order = random.Random(0)  # noqa: S311 - not for secrets: any order that is not fixed
        samples: dict[KernelConfig, tuple[float, ...]] = dict.fromkeys(configs, ())
        states: list[DeviceState] = []
        late = time.monotonic() + COMPARE_S
        for _ in range(MOST_TURNS // TURNS_AT_ONCE):
            orders = tuple(tuple(order.sample(configs, len(configs))) for _ in range(TURNS_AT_ONCE))
            try:
                turns: Turns = self._referee.ask(TakeTurns(orders), SHAPE_TIMEOUT_S)
            except WorkerDied:
                # Nobody can say which of them it was: the first is the likeliest to win.
                raise _Fatal(configs[0]) from None
            samples = {config: samples[config] + turns.samples_us[config] for config in configs}
            states += [turns.state] if turns.state else []
            if enough(samples) or time.monotonic() > late:
                break
        return Comparison(samples_us=samples, states=tuple(states))


class _Launch:
    """One configuration on the device: the first samples come with the check of its numbers."""

    def __init__(self, process: DeviceProcess, config: KernelConfig, *, deadline: float) -> None:
        self._process, self._config, self._deadline = process, config, deadline
        self.relative_error: float | None = None

    def take(self, count: int) -> Sequence[float]:
        """Further samples, microseconds per launch."""
        is_first = self.relative_error is None
        request = Start(self._config, count) if is_first else More(count)
        answer: Started | Failure | tuple[float, ...]
        answer = self._process.ask(request, self._deadline - time.monotonic())
        if isinstance(answer, Failure):
            raise _NotTimed(answer)
        if isinstance(answer, Started):
            self.relative_error = answer.relative_error
            return answer.samples_us
        return answer


def make_device_server(provider: str) -> Handler:
    """In the device's process: what answers the requests. Imports torch and Triton there."""
    from autotune.measure.cuda.device import DeviceServer

    return DeviceServer(provider)


class _NotTimed(Exception):
    """Carries a failure out of a callback; never leaves this module."""

    def __init__(self, failure: Failure) -> None:
        super().__init__(failure.reason)
        self.failure = failure


class _Fatal(Exception):
    """The device's process is gone because of a configuration; never leaves this module."""

    def __init__(self, config: KernelConfig) -> None:
        super().__init__(str(config))
        self.config = config


def _cores() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
