"""Measuring one configuration after the other, in a process that is replaced when it fails.

A configuration that ends the process has failed. A GPU that has failed is told from it: where the
fresh process cannot use the GPU either, the GPU is lost.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

from autotune.errors import DeviceLost, WorkerDied
from autotune.launch.config import KernelConfig
from autotune.launch.shape import KernelShape
from autotune.measure._base import StopRule
from autotune.measure.cuda.gpu import blames_device
from autotune.measure.cuda.process import REQUEST_TIMEOUT_S, DeviceProcess
from autotune.measure.cuda.protocol import Describe, Failure, More, Start, Started
from autotune.measure.measurement import Measurement, Outcome
from autotune.measure.racing import TOO_SLOW_REASON, race

#: How many processes must fail before a GPU is given up. The first may be one that stood ready when
#: the GPU failed, and failed with it.
_FRESH = 2

T = TypeVar("T")


class Searcher:
    """Measures in a process that owns the GPU, for everything but finalists.

    Attributes:
        device: The GPU, as messages name it.
    """

    def __init__(self, process: DeviceProcess, *, config_timeout_s: float) -> None:
        """Take over a process; it is started by the first request, or by ``start``.

        Args:
            process: Owns the device; belongs to the searcher from now on.
            config_timeout_s: Limit for launching and timing one configuration, in seconds.
        """
        self._process, self._timeout_s = process, config_timeout_s
        self.device = "the GPU"

    def start(self) -> None:
        """Start the process, so that the first request need not wait for it."""
        self._process.start()

    def prepare_spare(self) -> None:
        """Start a second process unless there is one, so that a fault need not cost seconds."""
        self._process.prepare_spare()

    def ask(self, request: object) -> Any:  # noqa: ANN401 - each request has its own answer
        """Have a request answered; see ``DeviceProcess.ask``."""
        return self._process.ask(request, REQUEST_TIMEOUT_S)

    def open(self, shape: KernelShape) -> None:
        """Have the process make the inputs of a shape, unless it has made them before.

        Raises:
            WorkerDied: The inputs cannot be made.
            DeviceLost: The GPU does not work any more.
        """
        self.whole(lambda: self._process.open(shape))

    def time(self, shape: KernelShape, config: KernelConfig, stop: StopRule) -> Measurement:
        """Launch, check and time; once more where the GPU has failed, and not the launch.

        Raises:
            DeviceLost: The GPU does not work any more.
        """
        measurement = self._time_once(shape, config, stop)
        if not blames_device(measurement.reason):
            return measurement
        measurement = self._time_once(shape, config, stop)
        if blames_device(measurement.reason):
            raise DeviceLost(f"{self.device} is lost: {measurement.reason}")
        return measurement

    def whole(self, work: Callable[[], T], renew: Callable[[], None] = lambda: None) -> T:
        """Do something that no configuration is to blame for, again if the GPU has failed once.

        Args:
            work: What to do.
            renew: Called before it is done again.

        Raises:
            WorkerDied: It cannot be done, though the GPU works.
            DeviceLost: The GPU does not.
        """
        try:
            return work()
        except WorkerDied as error:
            self._renew(str(error))
            if not blames_device(str(error)):
                raise
        renew()
        try:
            return work()
        except WorkerDied as error:
            raise DeviceLost(f"{self.device} is lost: {error}") from None

    def close(self) -> None:
        """End the process."""
        self._process.close()

    def _renew(self, reason: str) -> None:
        """Go on in a fresh process, if the GPU still works there.

        Raises:
            DeviceLost: It does not.
        """
        failure = ""
        for _ in range(_FRESH):
            self._process.replace()
            try:
                self._process.ask(Describe(), REQUEST_TIMEOUT_S)
            except WorkerDied as error:
                failure = str(error)
            else:
                return
        raise DeviceLost(f"{self.device} is lost: {reason}; and in a fresh process: {failure}")

    def _time_once(self, shape: KernelShape, config: KernelConfig, stop: StopRule) -> Measurement:
        def ended(outcome: Outcome, reason: str = "", **facts: Any) -> Measurement:  # noqa: ANN401 - fields differ in type
            return Measurement(shape=shape, config=config, outcome=outcome, reason=reason, **facts)

        deadline = time.monotonic() + self._timeout_s
        clock = _RemoteClock(self._process, shape, config, deadline=deadline)
        try:
            samples, cut = race(clock.take, lambda so_far: stop(config, so_far))
        except _NotTimed as error:
            failure = error.failure
            if failure.is_lost or blames_device(failure.reason):
                self._renew(failure.reason)
            return ended(failure.outcome, failure.reason, relative_error=failure.relative_error)
        except WorkerDied as error:
            self._renew(str(error))
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


class _NotTimed(Exception):
    """Carries a failure out of a callback; never leaves this module."""

    def __init__(self, failure: Failure) -> None:
        super().__init__(failure.reason)
        self.failure = failure
