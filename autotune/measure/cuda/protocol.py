"""Requests to the process that owns the GPU, and their answers; plain values only."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from autotune.launch.config import KernelConfig
from autotune.launch.environment import Device, Environment
from autotune.launch.shape import KernelShape
from autotune.measure.measurement import DeviceState, Outcome


@dataclass(frozen=True, slots=True)
class Describe:
    """Asks which device this is, if it still works; answered by ``Description``."""


@dataclass(frozen=True, slots=True)
class Description:
    """The device, and the environment of every measurement made on it."""

    device: Device
    environment: Environment


@dataclass(frozen=True, slots=True)
class Consult:
    """Asks the kernel provider about a shape; answered by ``Advice``."""

    shape: KernelShape


@dataclass(frozen=True, slots=True)
class Advice:
    """vLLM's default for a shape, and the parameters that the kernels set themselves."""

    default: KernelConfig
    forced: Mapping[str, int]


@dataclass(frozen=True, slots=True)
class Open:
    """Asks to make the inputs of a shape, and to go on with it; answered by None."""

    shape: KernelShape


@dataclass(frozen=True, slots=True)
class Start:
    """Asks to check a configuration and take samples; answered by ``Started`` or ``Failure``.

    Its shape was opened before; others may have been opened since.
    """

    shape: KernelShape
    config: KernelConfig
    samples: int


@dataclass(frozen=True, slots=True)
class Started:
    """The numbers are right, and these are the first samples, microseconds per launch."""

    relative_error: float
    samples_us: tuple[float, ...]


@dataclass(frozen=True, slots=True)
class Failure:
    """A configuration that could not be launched, or whose numbers are wrong.

    Attributes:
        outcome: How it ended.
        reason: Why.
        relative_error: Of wrong numbers; None where the kernel did not run.
        is_lost: Whether the CUDA context is gone, so that the process cannot go on.
    """

    outcome: Outcome
    reason: str
    relative_error: float | None = None
    is_lost: bool = False


@dataclass(frozen=True, slots=True)
class More:
    """Asks for further samples of the configuration started last.

    Answered by a tuple of microseconds per launch, or ``Failure``.
    """

    samples: int


@dataclass(frozen=True, slots=True)
class Prepare:
    """Asks to check a configuration and hold it ready for ``TakeTurns``.

    Answered by None or ``Failure``.
    """

    config: KernelConfig


@dataclass(frozen=True, slots=True)
class TakeTurns:
    """Asks for samples of prepared configurations: turn by turn one of each, in the order given.

    Answered by ``Turns``.
    """

    orders: tuple[tuple[KernelConfig, ...], ...]


@dataclass(frozen=True, slots=True)
class Turns:
    """Samples in microseconds per launch, and the device's state after them if it is known."""

    samples_us: Mapping[KernelConfig, tuple[float, ...]]
    state: DeviceState | None


@dataclass(frozen=True, slots=True)
class MeasureCeilings:
    """Asks what the device reaches at best; answered by ``Ceilings``."""
