"""What the tests of the search share: a runner that counts, and a tuner on a database."""

from __future__ import annotations

import gzip
import json
from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack, closing, contextmanager
from pathlib import Path
from typing import Any

from autotune.choose.selection import Selection
from autotune.launch.config import KernelConfig
from autotune.launch.shape import KernelShape
from autotune.measure import Measurement, Runner, StopRule
from autotune.measure.replay import ReplayRunner
from autotune.plan.study import StudyPlan
from autotune.search import Budget, ShapeTuner, TrialMirror
from autotune.search.events import Tuned, Watch, unwatched
from autotune.search.session import Session
from autotune.search.tune import tune as tune_session
from autotune.search.writer import Writer
from autotune.store import Store
from tests.recordings import ENVIRONMENT, SHRINK, lines

SHAPE = KernelShape.from_mapping(SHRINK)

#: 12 configurations of 162, the default among them.
FEW = {"block_n": (16,), "block_k": (64,), "num_warps": (4,), "block_m": (16, 32)}


def write_lines(path: Path, measurements: Iterable[dict[str, Any]]) -> Path:
    """Write a recording of these lines."""
    header = {"schema": "autotune-recording/1", "environment": ENVIRONMENT}
    with gzip.open(path, "wt") as file:
        file.writelines(json.dumps(line) + "\n" for line in (header, *measurements))
    return path


def broken_lines(shape: dict[str, Any], count: int = 12) -> list[dict[str, Any]]:
    """The first lines of a shape, none of which compiles."""
    broken = lines(shape)[:count]
    for line in broken:
        line.pop("samples_us", None)
        line |= {"outcome": "compile_failed", "reason": "no"}
    broken[-1]["is_default"] = True
    return broken


class CountingRunner(ReplayRunner):
    """Replays, keeps count, and is interrupted after some measurements."""

    def __init__(self, path: Path, *, interrupted_after: int | None = None) -> None:
        super().__init__([path])
        self.measured: list[KernelConfig] = []
        self.compared: list[tuple[KernelConfig, ...]] = []
        self.interrupted_after = interrupted_after

    def measure(
        self, shape: KernelShape, pending: Sequence[KernelConfig], stop: StopRule
    ) -> Measurement:
        if len(self.measured) == self.interrupted_after:
            raise KeyboardInterrupt
        measurement = super().measure(shape, pending, stop)
        self.measured.append(measurement.config)
        return measurement

    def compare(self, shape, configs, *rule):
        self.compared.append(tuple(configs))
        return super().compare(shape, configs, *rule)


def tune(
    plan: StudyPlan, runner: Runner, watch: Watch = unwatched, *, record: Path | None = None
) -> Sequence[Tuned]:
    """Tune every shape of a plan in a session of its own."""
    with Session(plan, runner, watch, record=record) as session:
        return tune_session(session)


@contextmanager
def opened(
    runner: ReplayRunner,
    url: str,
    *,
    axes: dict[str, tuple[int, ...]] | None = None,
    sampler: str = "tpe",
    seed: int = 0,
    shape: KernelShape = SHAPE,
) -> Iterator[ShapeTuner]:
    """A tuner of a shape."""
    with ExitStack() as stack:
        store = stack.enter_context(closing(Store(url)))
        mirror = stack.enter_context(closing(TrialMirror(url)))
        yield ShapeTuner(
            runner,
            runner.space(shape, axes or {}),
            writer=stack.enter_context(closing(Writer(store, mirror))),
            sampler=sampler,
            seed=seed,
        )


def tuned(runner: ReplayRunner, url: str, trials: int, **options: object) -> Selection | None:
    """Open a tuner and run it."""
    with opened(runner, url, **options) as tuner:  # type: ignore[arg-type]
        return tuner.run(Budget(trials=trials))
