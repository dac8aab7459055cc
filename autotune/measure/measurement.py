"""What measuring gives: outcomes, measurements, comparisons, and the state of the device."""

from __future__ import annotations

import statistics
from collections.abc import Mapping
from dataclasses import dataclass
from enum import Enum

from autotune.launch.config import KernelConfig
from autotune.launch.shape import KernelShape


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


@dataclass(frozen=True, slots=True)
class Ceilings:
    """What the device reaches at best.

    Attributes:
        copy_bytes_per_s: Of a copy within the device's memory, bytes read and bytes written.
        matmul_flops_per_s: Of a large bfloat16 matrix product.
    """

    copy_bytes_per_s: float
    matmul_flops_per_s: float


def outcome_counts(outcomes: Mapping[str, int]) -> tuple[int, int, int]:
    """How many trials were invalid, how many failed, and how many were cut short."""
    known = {outcome: outcomes.get(outcome.value, 0) for outcome in Outcome}
    invalid, cut = known[Outcome.INVALID], known[Outcome.TOO_SLOW]
    return invalid, sum(known.values()) - known[Outcome.OK] - invalid - cut, cut
