"""The events of a run of four shapes, for tests of what is made of them."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace

from autotune.choose.selection import Selection
from autotune.launch.config import KernelConfig
from autotune.launch.shape import KernelShape
from autotune.measure import Measurement, Outcome
from autotune.search.events import Planned, ShapeDone, Tried, Tuned
from tests.recordings import SHRINK

SHAPES = [replace(KernelShape.from_mapping(SHRINK), num_tokens=count) for count in (1, 2, 4, 8)]
VALUES = {"block_m": 16, "block_n": 16, "block_k": 64, "split_k": 8, "num_warps": 4}
CONFIG = KernelConfig.from_mapping(SHAPES[0].op, VALUES | {"num_stages": 3, "num_ctas": 1})


def planned(most: int = 20) -> Planned:
    return Planned(trials=dict.fromkeys(SHAPES, most), defaults=dict.fromkeys(SHAPES, CONFIG))


def tried(number: int, shape: KernelShape = SHAPES[0], **values: object) -> Tried:
    measured = {"outcome": Outcome.OK, "samples_us": (6.0, 6.02, 6.1)} | values
    measurement = Measurement(shape=shape, config=CONFIG, **measured)  # type: ignore[arg-type]
    return Tried(measurement=measurement, tried=number, best_us=6.02, default_us=12.04)


def done(number: int, trials: int, selection: Selection | None = None) -> ShapeDone:
    shape = SHAPES[number - 1]
    tuned = Tuned(shape=shape, selection=selection, outcomes=Counter(ok=trials))
    return ShapeDone(tuned=tuned, number=number, count=len(SHAPES))
