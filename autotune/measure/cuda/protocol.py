"""What the runner and the process that owns the GPU say to each other; plain values only."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from autotune.launch.config import KernelConfig
from autotune.launch.environment import Device, Environment
from autotune.launch.shape import KernelShape
from autotune.measure.measurement import DeviceState, Outcome


@dataclass(frozen=True, slots=True)
class Describe:
    """Asks where this is; answered by ``Description``."""


@dataclass(frozen=True, slots=True)
class Description:
    """The device, and the environment of every measurement made on it."""

    device: Device
    environment: Environment


@dataclass(frozen=True, slots=True)
class Consult:
    """Asks what the kernels' provider says of a shape; answered by ``Advice``."""

    shape: KernelShape


@dataclass(frozen=True, slots=True)
class Advice:
    """vLLM's default for a shape, and the parameters that the kernels set themselves."""

    default: KernelConfig
    forced: Mapping[str, int]


@dataclass(frozen=True, slots=True)
class Open:
    """Asks to make the inputs of a shape, in place of those of another; answered by None."""

    shape: KernelShape


@dataclass(frozen=True, slots=True)
class Start:
    """Asks to check a configuration and take samples; answered by ``Started`` or ``Failure``."""

    config: KernelConfig
    samples: int


@dataclass(frozen=True, slots=True)
class Started:
    """The numbers are right, and these are the first samples, microseconds per launch."""

    relative_error: float
    samples_us: tuple[float, ...]


@dataclass(frozen=True, slots=True)
class Failure:
    """A configuration that did not get through.

    Attributes:
        outcome: How it ended.
        reason: Why.
        relative_error: Where the kernel ran but its numbers are wrong.
        is_lost: The process cannot go on: its CUDA context is gone.
    """

    outcome: Outcome
    reason: str
    relative_error: float | None = None
    is_lost: bool = False


@dataclass(frozen=True, slots=True)
class More:
    """Asks for further samples of the configuration started last; answered by a tuple."""

    samples: int


@dataclass(frozen=True, slots=True)
class Prepare:
    """Asks to check a configuration and hold it ready for ``TakeTurns``.

    Answered by None or ``Failure``.
    """

    config: KernelConfig


@dataclass(frozen=True, slots=True)
class TakeTurns:
    """Asks for one sample of each prepared configuration, in this order, round after round.

    Answered by ``Turns``.
    """

    orders: tuple[tuple[KernelConfig, ...], ...]


@dataclass(frozen=True, slots=True)
class Turns:
    """Samples in microseconds per launch, and the device's state behind them if it is known."""

    samples_us: Mapping[KernelConfig, tuple[float, ...]]
    state: DeviceState | None


@dataclass(frozen=True, slots=True)
class MeasureCeilings:
    """Asks what the device reaches at best; answered by ``Ceilings``."""
