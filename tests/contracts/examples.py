"""What the tests of databases keep in them: one study's measurements, and a selection."""

from __future__ import annotations

from dataclasses import replace
from datetime import datetime, timedelta
from typing import Any

from optuna.trial import FrozenTrial

from autotune.choose.selection import Ratio, Selection
from autotune.launch.config import KernelConfig
from autotune.launch.environment import Environment
from autotune.launch.shape import KernelShape
from autotune.measure import Measurement, Outcome
from autotune.search.samplers.encoding import value_distributions
from autotune.search.samplers.objective import frozen_trial
from autotune.store import Finished
from tests.recordings import ENVIRONMENT, SHRINK

SHAPE = KernelShape.from_mapping(SHRINK)
HERE = Environment.from_mapping(ENVIRONMENT)
NOON = datetime(2025, 6, 1, 12, 0, 0, 250_000)  # noqa: DTZ001 - the store's times are naive UTC


def config(**values: int) -> KernelConfig:
    usual = {"block_m": 16, "block_n": 16, "block_k": 64, "split_k": 8}
    usual |= {"num_warps": 4, "num_stages": 3}
    return KernelConfig.from_mapping(SHAPE.op, usual | values)


def finished(number: int, **values: Any) -> Finished:
    """The ``number``-th measurement of a study, a second after the one before."""
    started = NOON + timedelta(seconds=number)
    measurement = Measurement(
        shape=SHAPE,
        config=config(split_k=number + 1),
        outcome=Outcome.OK,
        samples_us=(10.0 + number, 11.0),
    )
    return Finished(
        measurement=replace(measurement, **values),
        started_at=started,
        finished_at=started + timedelta(milliseconds=10),
    )


def selection(**values: Any) -> Selection:
    chosen = Selection(
        shape=SHAPE,
        config=config(),
        default=config(block_k=128),
        samples_us={config(): (5.0, 5.1), config(block_k=128): (10.0, 10.3)},
        ratio=Ratio(value=2.0, low=1.9, high=2.1),
        trials=20,
        outcomes={"ok": 18, "too_slow": 2},
    )
    return replace(chosen, **values)


def trials() -> list[FrozenTrial]:
    """One trial of every kind that a search ends with; their times are local."""
    items = [
        finished(0),
        finished(1, outcome=Outcome.TOO_SLOW, reason="plainly slower", samples_us=(80.0,) * 5),
        finished(2, outcome=Outcome.LAUNCH_FAILED, reason="OutOfResources", samples_us=()),
        finished(3, samples_us=(4.5,), relative_error=2.4e-7),
        finished(4, outcome=Outcome.WRONG_RESULT, reason="off", samples_us=(), relative_error=0.5),
    ]
    made = []
    for item in items:
        trial = frozen_trial(
            item.measurement,
            params=item.measurement.config.as_dict(),
            distributions=value_distributions(SHAPE.op),
        )
        trial.datetime_start, trial.datetime_complete = item.started_at, item.finished_at
        made.append(trial)
    return made
