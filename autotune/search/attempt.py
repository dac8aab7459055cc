"""One measurement of a search, apart from the search: another thread may make it meanwhile."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime

from autotune.launch.config import KernelConfig
from autotune.launch.shape import KernelShape
from autotune.measure import Measurement, Runner
from autotune.measure.racing import SlowerThan
from autotune.store import utc_now


@dataclass(slots=True, kw_only=True)
class Attempt:
    """A measurement of one of the configurations under way.

    Attributes:
        shape: The shape.
        configs: The configurations under way, oldest first.
        rule: What is plainly too slow, by what the search knew when it was asked.
        races: The samples with which the rule was asked of the one that was measured.
    """

    shape: KernelShape
    configs: tuple[KernelConfig, ...]
    rule: SlowerThan
    races: list[tuple[float, ...]] = field(default_factory=list)

    def made_by(self, runner: Runner) -> Made:
        """Measure whichever configuration the runner has ready first."""
        started_at = utc_now()
        measurement = runner.measure(self.shape, self.configs, _Noting(self.rule, self.races))
        return Made(self, measurement, started_at, utc_now())


@dataclass(frozen=True, slots=True)
class Made:
    """An attempt that was made.

    Attributes:
        attempt: The attempt.
        measurement: What was measured.
        started_at: When, UTC.
        finished_at: Until when, UTC.
    """

    attempt: Attempt
    measurement: Measurement
    started_at: datetime
    finished_at: datetime


@dataclass(frozen=True, slots=True)
class _Noting:
    """A StopRule that notes what it is asked; sent to another process, it is the rule alone."""

    rule: SlowerThan
    asked: list[tuple[float, ...]]

    def __call__(self, config: KernelConfig, samples_us: Sequence[float]) -> bool:
        self.asked.append(tuple(samples_us))
        return self.rule(config, samples_us)

    def __reduce__(self) -> tuple[type[SlowerThan], tuple[Mapping[KernelConfig, float]]]:
        return SlowerThan, (self.rule.best_us,)
