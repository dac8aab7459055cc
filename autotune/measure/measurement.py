"""Results of measuring: outcomes, measurements, comparisons, and the state of the device."""

from __future__ import annotations

import statistics
from collections.abc import Mapping
from dataclasses import dataclass
from enum import Enum
from typing import Any

from autotune.launch.config import KernelConfig
from autotune.launch.shape import KernelShape


class Outcome(str, Enum):
    """How measuring one configuration ended."""

    OK = "ok"
    INVALID = "invalid"  # it breaks a static rule
    COMPILE_FAILED = "compile_failed"
    COMPILE_TIMEOUT = "compile_timeout"
    LAUNCH_FAILED = "launch_failed"
    WRONG_RESULT = "wrong_result"
    TOO_SLOW = "too_slow"  # cut short, since it cannot win
    TIMED_OUT = "timed_out"
    WORKER_DIED = "worker_died"


@dataclass(frozen=True, slots=True, kw_only=True)
class Measurement:
    """Everything that was measured of one configuration of one shape.

    Attributes:
        shape: The shape.
        config: The configuration.
        outcome: How measuring ended.
        reason: What went wrong; empty if the outcome is ``ok``.
        samples_us: All timed figures, microseconds per launch, in the order in which they were
            taken, without warm-ups.
        relative_error: ‖out − ref‖ / ‖ref‖ against float64; None where nothing was launched.
        shared_memory_bytes: Shared memory of the compiled kernel per block; None where not known.
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
        """The median of the samples, microseconds per launch.

        Raises:
            StatisticsError: There are no samples.
        """
        return statistics.median(self.samples_us)


@dataclass(frozen=True, slots=True, kw_only=True)
class DeviceState:
    """The device at one moment, as NVML reads it.

    Attributes:
        sm_clock_mhz: Clock of the multiprocessors.
        memory_clock_mhz: Clock of the memory.
        temperature_c: Temperature of the chip.
        throttle_reasons: Why the clocks are held down, such as heat or power; empty if they are
            not.
    """

    sm_clock_mhz: int
    memory_clock_mhz: int
    temperature_c: int
    throttle_reasons: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class RunnerStatus:
    """What a runner is doing at one moment.

    Attributes:
        compiling: Configurations that are being compiled.
        waiting: Configurations that wait for a compile worker.
        device: State of the device; None where it cannot be read.
        compilers: The runner's share of the compile workers.
        compiled_s: Seconds of all workers together in which they have compiled for it.
    """

    compiling: int
    waiting: int
    device: DeviceState | None = None
    compilers: float = 0.0
    compiled_s: float = 0.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Comparison:
    """Configurations timed side by side.

    Attributes:
        samples_us: The samples of each configuration, microseconds per launch. All have equally
            many; the i-th samples of all were taken side by side.
        states: The device at several moments of the comparison; empty where it cannot be read.
    """

    samples_us: Mapping[KernelConfig, tuple[float, ...]]
    states: tuple[DeviceState, ...] = ()

    @property
    def is_throttled(self) -> bool:
        """Whether the device held its clocks down during the comparison."""
        return any(state.throttle_reasons for state in self.states)


@dataclass(frozen=True, slots=True)
class Ceilings:
    """What the device reaches at best.

    Attributes:
        copy_bytes_per_s: Bytes read and written per second in a copy within the device's memory.
        matmul_flops_per_s: Floating-point operations per second of a large bfloat16 matrix product.
    """

    copy_bytes_per_s: float
    matmul_flops_per_s: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Replayed:
    """The recordings that answered in place of a GPU.

    Attributes:
        recordings: The names of their files.
        measured_at: The day on which they were measured, such as ``2026-11-24``, or the first and
            the last of several; empty where they do not say.
    """

    recordings: tuple[str, ...]
    measured_at: str = ""

    def as_dict(self) -> dict[str, Any]:
        """JSON-ready values."""
        return {"recordings": list(self.recordings), "measured_at": self.measured_at}

    def __str__(self) -> str:
        """Such as ``a.jsonl.gz, measured 2026-11-24``."""
        names = ", ".join(self.recordings)
        return f"{names}, measured {self.measured_at or 'at a time that it does not say'}"


def outcome_counts(outcomes: Mapping[str, int]) -> tuple[int, int, int]:
    """Count outcomes: how many were invalid, how many failed, and how many were cut short.

    Args:
        outcomes: How often each outcome occurred, by its value.
    """
    known = {outcome: outcomes.get(outcome.value, 0) for outcome in Outcome}
    invalid, cut = known[Outcome.INVALID], known[Outcome.TOO_SLOW]
    return invalid, sum(known.values()) - known[Outcome.OK] - invalid - cut, cut
