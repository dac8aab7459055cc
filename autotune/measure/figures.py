"""What a file or a database may say about a measurement."""

from __future__ import annotations

import re
from typing import Annotated

from pydantic import BeforeValidator, Field, model_validator

from autotune.errors import shown
from autotune.launch.config import KernelConfig
from autotune.launch.shape import KernelShape
from autotune.measure.measurement import Ceilings, Measurement, Outcome, Replayed
from autotune.untrusted import Count, Factor, Microseconds, Untrusted

_DAYS = re.compile(r"(\d{4}-\d\d-\d\d( to \d{4}-\d\d-\d\d)?)?", re.ASCII)


def _days(value: object) -> object:
    if not isinstance(value, str) or not _DAYS.fullmatch(value):
        raise ValueError(
            "must be a day such as 2026-11-24, or two with ' to ' between: "
            f"got {shown(value)}; leave it out where it is not known"
        )
    return value


#: A day, two with " to " between, or nothing where it is not known.
Days = Annotated[str, BeforeValidator(_days)]

#: Outcomes with samples.
_TIMED = {Outcome.OK, Outcome.TOO_SLOW}


class CeilingsTable(Untrusted):
    """What a device reaches at best."""

    copy_bytes_per_s: Factor
    matmul_flops_per_s: Factor

    @property
    def ceilings(self) -> Ceilings:
        """The same as everything else in this package takes it."""
        return Ceilings(self.copy_bytes_per_s, self.matmul_flops_per_s)


class ReplayedTable(Untrusted):
    """The recordings that answered in place of a GPU."""

    recordings: tuple[str, ...]
    measured_at: Days = ""

    @property
    def replayed(self) -> Replayed:
        """The same as everything else in this package takes it."""
        return Replayed(recordings=self.recordings, measured_at=self.measured_at)


class Figures(Untrusted):
    """A measurement's fields, without the shape and the configuration that they are about."""

    outcome: Outcome
    reason: str = Field("", max_length=100_000)
    samples_us: tuple[Microseconds, ...] = ()
    #: A wrong result may be off by any factor, or hold NaN.
    relative_error: float | None = None
    shared_memory_bytes: Count | None = None
    registers: Count | None = None
    spills: Count | None = None

    @model_validator(mode="after")
    def _fit_the_outcome(self) -> Figures:
        if self.outcome is Outcome.OK and not self.samples_us:
            raise ValueError("samples_us must hold at least one figure where the outcome is ok")
        if self.outcome not in _TIMED and self.samples_us:
            raise ValueError(f"samples_us must be empty where the outcome is {self.outcome.value}")
        error = self.relative_error
        if error is not None and not error >= 0 and self.outcome is not Outcome.WRONG_RESULT:
            raise ValueError(f"relative_error must be 0 or more: got {error!r}")
        return self

    def measurement(self, shape: KernelShape, config: KernelConfig) -> Measurement:
        """The measurement of a configuration of a shape."""
        return Measurement(
            shape=shape,
            config=config,
            outcome=self.outcome,
            reason=self.reason,
            samples_us=self.samples_us,
            relative_error=self.relative_error,
            shared_memory_bytes=self.shared_memory_bytes,
            registers=self.registers,
            spills=self.spills,
        )
