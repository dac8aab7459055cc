"""The Runner that measures on a CUDA device.

One process owns the device, the others compile ahead of it; this module directs them and imports
neither torch nor Triton.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from multiprocessing.connection import wait
from typing import Any

from autotune.errors import AutotuneError, WorkerDied
from autotune.measure._base import Measurement, Outcome, Runner, StopRule
from autotune.measure.compiler import CompileFailure, CompilePool
from autotune.measure.protocol import (
    Advice,
    Compare,
    Consult,
    Describe,
    Description,
    Failure,
    More,
    Open,
    Start,
    Started,
)
from autotune.measure.racing import race
from autotune.measure.worker import Handler, Worker
from autotune.shapes import KernelShape
from autotune.space import Grid, KernelConfig, SearchSpace, complete_axes

#: Limit for launching, checking and timing one configuration; the slowest valid ones take 1 s.
CONFIG_TIMEOUT_S = 10.0

#: Limit for making a shape's inputs, or for comparing its finalists.
SHAPE_TIMEOUT_S = 120.0

#: Configurations beyond one per compile worker that are asked for ahead, so that none waits.
_SPARE = 4


class CudaRunner(Runner):
    """Measures on the current CUDA device."""

    def __init__(
        self,
        provider: str,
        *,
        compile_workers: int | None = None,
        config_timeout_s: float = CONFIG_TIMEOUT_S,
        device_server: Callable[[str], Handler] | None = None,
    ) -> None:
        """Start the device's process and the compile workers.

        Args:
            provider: Name of the kernel provider.
            compile_workers: How many; one per core but one where not given.
            config_timeout_s: Limit for one configuration, in seconds.
            device_server: Makes what answers ``protocol``'s requests in the device's process, from
                the provider's name; a real device where not given.

        Raises:
            WorkerDied: A process cannot start; its message says why.
        """
        self._provider = provider
        self._device_server = device_server or make_device_server
        self._timeout_s = config_timeout_s
        self._shape: KernelShape | None = None
        self._pool: CompilePool | None = None
        self._worker = self._start()
        try:
            description: Description = self.ask(Describe(), SHAPE_TIMEOUT_S)
            self._device, self.environment = description.device, description.environment
            workers = compile_workers or max(1, _cores() - 1)
            self._pool = CompilePool(provider, self._device.capability, workers=workers)
        except BaseException:
            self.close()
            raise
        self.lookahead = workers + _SPARE

    def space(self, shape: KernelShape, axes: Mapping[str, Sequence[int]]) -> SearchSpace:
        """Every configuration that the static rules leave for this device."""
        advice: Advice = self.ask(Consult(shape), SHAPE_TIMEOUT_S)
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
        self._open(shape)
        (_, config), compiled = self._compilers.first_done([(shape, c) for c in pending])
        if isinstance(compiled, CompileFailure):
            return Measurement(
                shape=shape, config=config, outcome=compiled.outcome, reason=compiled.reason
            )
        limit = self._device.shared_memory_bytes
        needed = compiled.shared_memory_bytes
        if needed > limit:
            reason = f"shared_memory: needs {needed} bytes a block, {limit} are there"
            ending = Measurement(shape=shape, config=config, outcome=Outcome.INVALID, reason=reason)
        else:
            ending = self._time(shape, config, stop)
        return replace(
            ending,
            shared_memory_bytes=needed,
            registers=compiled.registers,
            spills=compiled.spills,
        )

    def compare(
        self, shape: KernelShape, configs: Sequence[KernelConfig]
    ) -> Mapping[KernelConfig, tuple[float, ...]]:
        """Time configurations side by side on the device.

        Raises:
            WorkerDied: The device's process ended meanwhile.
        """
        self._open(shape)
        answer: Mapping[KernelConfig, tuple[float, ...]]
        answer = self.ask(Compare(tuple(configs)), SHAPE_TIMEOUT_S)
        return answer

    def close(self) -> None:
        """End all processes."""
        self._worker.kill()
        if self._pool is not None:
            self._pool.close()

    @property
    def _compilers(self) -> CompilePool:
        if self._pool is None:
            raise AutotuneError("the runner is closed; make a new one")
        return self._pool

    def _time(self, shape: KernelShape, config: KernelConfig, stop: StopRule) -> Measurement:
        """Launch, check and time a compiled configuration."""

        def ended(outcome: Outcome, reason: str = "", **facts: Any) -> Measurement:  # noqa: ANN401 - fields differ in type
            return Measurement(shape=shape, config=config, outcome=outcome, reason=reason, **facts)

        launch = _Launch(self, config, deadline=time.monotonic() + self._timeout_s)
        try:
            samples, cut = race(launch.take, lambda so_far: stop(config, so_far))
        except _NotTimed as error:
            failure = error.failure
            if failure.is_lost:
                self._replace_worker()
            return ended(failure.outcome, failure.reason, relative_error=failure.relative_error)
        except WorkerDied as error:
            self._replace_worker()
            if error.timed_out:
                reason = f"not launched and timed within {self._timeout_s:g} s"
                return ended(Outcome.TIMED_OUT, reason)
            return ended(Outcome.WORKER_DIED, str(error))
        facts: dict[str, Any] = {"samples_us": samples, "relative_error": launch.relative_error}
        if cut:
            return ended(Outcome.TOO_SLOW, "plainly slower than the best so far", **facts)
        return ended(Outcome.OK, **facts)

    def _open(self, shape: KernelShape) -> None:
        """Have the device's process hold the inputs of ``shape``."""
        if self._shape != shape:
            self._compilers.forget()
            self._shape = None
            self.ask(Open(shape), SHAPE_TIMEOUT_S)
            self._shape = shape

    def ask(self, request: object, timeout_s: float) -> Any:  # noqa: ANN401 - each request has its own answer
        """Have the device's process answer, and keep the compilers busy meanwhile."""
        self._worker.wait_until_ready()
        self._worker.send(request)
        deadline = time.monotonic() + timeout_s
        while self._pool is not None and time.monotonic() < deadline:
            self._pool.pump()
            connections = [self._worker.connection, *self._pool.connections]
            readable = wait(connections, timeout=max(0.0, deadline - time.monotonic()))
            if self._worker.connection in readable:
                break
        return self._worker.receive(max(0.0, deadline - time.monotonic()))

    def _start(self) -> Worker:
        return Worker(self._device_server, (self._provider,))

    def _replace_worker(self) -> None:
        self._worker.kill()
        self._worker = self._start()
        self._shape = None


def make_device_server(provider: str) -> Handler:
    """In the device's process: what answers the requests. Imports torch and Triton there."""
    from autotune.measure.device import DeviceServer

    return DeviceServer(provider)


class _Launch:
    """One configuration on the device: the first samples come with the check of its numbers."""

    def __init__(self, runner: CudaRunner, config: KernelConfig, *, deadline: float) -> None:
        self._runner, self._config, self._deadline = runner, config, deadline
        self.relative_error: float | None = None

    def take(self, count: int) -> Sequence[float]:
        """Further samples, microseconds per launch."""
        left_s = self._deadline - time.monotonic()
        if self.relative_error is not None:
            more: tuple[float, ...] = self._runner.ask(More(count), left_s)
            return more
        answer: Started | Failure = self._runner.ask(Start(self._config, count), left_s)
        if isinstance(answer, Failure):
            raise _NotTimed(answer)
        self.relative_error = answer.relative_error
        return answer.samples_us


class _NotTimed(Exception):
    def __init__(self, failure: Failure) -> None:
        super().__init__(failure.reason)
        self.failure = failure


def _cores() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
