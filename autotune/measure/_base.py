"""What every Runner takes and answers. Knows nothing of Optuna, torch or Triton."""

from __future__ import annotations

import statistics
from abc import ABC, abstractmethod
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from enum import Enum
from typing import TYPE_CHECKING

from autotune.launch.environment import Environment
from autotune.launch.shape import KernelShape
from autotune.launch.space import KernelConfig, SearchSpace

if TYPE_CHECKING:
    from typing_extensions import Self

    from autotune.measure.cuda.protocol import Ceilings


class Outcome(str, Enum):
    """How measuring one configuration ended."""

    OK = "ok"
    INVALID = "invalid"  # a static rule threw it out
    COMPILE_FAILED = "compile_failed"
    COMPILE_TIMEOUT = "compile_timeout"
    LAUNCH_FAILED = "launch_failed"
    WRONG_RESULT = "wrong_result"
    TOO_SLOW = "too_slow"  # cut short: it cannot win
    TIMED_OUT = "timed_out"
    WORKER_DIED = "worker_died"


@dataclass(frozen=True, slots=True, kw_only=True)
class Measurement:
    """Everything that is known of one configuration of one shape.

    Attributes:
        shape: The shape.
        config: The configuration.
        outcome: How it ended.
        reason: What went wrong, for every outcome but ``ok``.
        samples_us: All timed figures, microseconds per launch, in the order in which they were
            taken; warm-ups are none of them.
        relative_error: ‖out − ref‖ / ‖ref‖ against float64; None where nothing was launched.
        shared_memory_bytes: What the compiled kernel uses per block; None where not known.
        registers: Registers per thread; None where not known.
        spills: Registers spilled to local memory, per thread; None where not known.
    """

    shape: KernelShape
    config: KernelConfig
    outcome: Outcome
    reason: str = ""
    samples_us: tuple[float, ...] = ()
    relative_error: float | None = None
    shared_memory_bytes: int | None = None
    registers: int | None = None
    spills: int | None = None

    @property
    def latency_us(self) -> float:
        """The median of the samples, microseconds per launch; raises where there is none."""
        return statistics.median(self.samples_us)


@dataclass(frozen=True, slots=True, kw_only=True)
class DeviceState:
    """What NVML says of the device at one moment.

    Attributes:
        sm_clock_mhz: Clock of the multiprocessors.
        memory_clock_mhz: Clock of the memory.
        temperature_c: Of the chip.
        throttle_reasons: Why the clocks are held down, heat or power; empty where they are not.
    """

    sm_clock_mhz: int
    memory_clock_mhz: int
    temperature_c: int
    throttle_reasons: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class RunnerStatus:
    """What a runner is busy with at one moment.

    Attributes:
        compiling: Configurations that are being compiled.
        waiting: Configurations that wait for a compile worker.
        device: What the device's driver says; None where nothing does.
    """

    compiling: int
    waiting: int
    device: DeviceState | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Comparison:
    """Configurations timed side by side.

    Attributes:
        samples_us: Per configuration its samples, microseconds per launch, equally many for all:
            the i-th of one was taken beside the i-th of the others.
        states: The device before, during and after; empty where nothing says.
    """

    samples_us: Mapping[KernelConfig, tuple[float, ...]]
    states: tuple[DeviceState, ...] = ()

    @property
    def is_throttled(self) -> bool:
        """Whether the device held its clocks down meanwhile."""
        return any(state.throttle_reasons for state in self.states)


#: Asked now and then while configurations are compared: are these samples enough?
EnoughRule = Callable[[Mapping[KernelConfig, Sequence[float]]], bool]

#: Asked after every timing round with all samples so far: is this one plainly too slow?
StopRule = Callable[[KernelConfig, Sequence[float]], bool]


def never_stop(_config: KernelConfig, _samples_us: Sequence[float]) -> bool:
    """The StopRule that times every configuration in full."""
    return False


class Runner(ABC):
    """Turns configurations of a shape into measurements.

    A runner is used from one thread, but for ``status``. Its owner closes it; it is a context
    manager.

    Attributes:
        environment: Where it measures.
        lookahead: How many configurations ``measure`` should be given to choose from, so that
            the next are made ready while one is timed.
    """

    environment: Environment
    lookahead: int = 1

    @abstractmethod
    def space(self, shape: KernelShape, axes: Mapping[str, Sequence[int]]) -> SearchSpace:
        """The configurations of ``shape`` that this runner can measure.

        Args:
            shape: The shape.
            axes: Values that replace the usual ones, per parameter.

        Raises:
            SpaceError: Nothing is left to measure.
            ReplayMiss: The shape was not recorded.
        """

    @abstractmethod
    def measure(
        self, shape: KernelShape, pending: Sequence[KernelConfig], stop: StopRule
    ) -> Measurement:
        """Measure one of ``pending``: whichever is ready first.

        A configuration that cannot be measured is an ``Outcome``, never an exception.

        Args:
            shape: The shape.
            pending: Distinct configurations of the shape's space, oldest first, at least one. Those
                left over are given again in the next call, or never.
            stop: Asked after every timing round; true ends the configuration as ``too_slow``.
        """

    @abstractmethod
    def compare(
        self, shape: KernelShape, configs: Sequence[KernelConfig], enough: EnoughRule
    ) -> Comparison:
        """Time configurations side by side, one sample of each in turn, in random order.

        Args:
            shape: The shape.
            configs: Distinct configurations of the shape.
            enough: Asked now and then whether to stop; there is a limit besides.

        Returns:
            The samples. A configuration that does not run is left out.
        """

    @property
    def status(self) -> RunnerStatus | None:
        """What it is busy with; None of a runner that only looks figures up. From any thread."""
        return None

    @property
    def answered(self) -> Collection[KernelShape]:
        """Shapes whose measurements it holds already; none of a runner that measures."""
        return ()

    def recall(self, measurements: Iterable[Measurement]) -> None:  # noqa: B027 - most need not know
        """Be told what earlier runs measured of a shape whose space was asked for."""

    def ceilings(self) -> Ceilings | None:
        """What the device reaches at best, for rooflines; None where nothing says."""
        return None

    def close(self) -> None:  # noqa: B027 - many a runner holds nothing
        """Give back processes and memory."""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()
