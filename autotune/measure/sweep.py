"""Measuring whole search spaces into a recording."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Callable
from pathlib import Path

from autotune.launch.config import KernelConfig
from autotune.launch.shape import KernelShape
from autotune.launch.space import SearchSpace
from autotune.measure import Runner, never_stop
from autotune.measure.recording import RecordingRunner, RecordingWriter
from autotune.plan.study import StudyPlan

#: Told of every shape when it is done: the outcomes, its number from 1, and how many there are.
Progress = Callable[[KernelShape, Counter[str], int, int], None]


def record(
    plan: StudyPlan, runner: Runner, path: Path, *, sample: int | None, progress: Progress
) -> None:
    """Measure every configuration of every shape of a plan, each in full.

    An interruption leaves a recording of what was measured until then.

    Args:
        plan: The shapes and their axes; its seed draws the sample.
        runner: Measures.
        path: The recording to write.
        sample: Measure only so many configurations of each shape, the default among them.
        progress: Called after every shape.

    Raises:
        AutotuneError: The file cannot be written, or something cannot be measured at all.
    """
    shapes = plan.shapes
    with RecordingWriter(path, runner.environment, runner.ceilings()) as writer:
        recorder = RecordingRunner(runner, writer)
        for number, shape in enumerate(shapes, start=1):
            space = recorder.space(shape, plan.axes[shape.op])
            outcomes = _measure_all(recorder, space, _sample(space, sample, plan.seed))
            progress(shape, outcomes, number, len(shapes))


def _sample(space: SearchSpace, size: int | None, seed: int) -> list[KernelConfig]:
    others = [config for config in space.configs if config != space.default]
    if size is not None and size <= len(others):
        # Not for secrets: the same seed must draw the same sample.
        others = random.Random(seed).sample(others, size - 1)  # noqa: S311
    return [space.default, *others]


def _measure_all(runner: Runner, space: SearchSpace, configs: list[KernelConfig]) -> Counter[str]:
    pending = dict.fromkeys(configs)
    outcomes: Counter[str] = Counter()
    while pending:
        ahead = list(pending)[: runner.lookahead]
        measurement = runner.measure(space.shape, ahead, never_stop)
        del pending[measurement.config]
        outcomes[measurement.outcome.value] += 1
    return outcomes
