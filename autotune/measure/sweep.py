"""Measuring whole search spaces into a recording."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path

from autotune.launch.config import KernelConfig
from autotune.launch.op import LoraOp
from autotune.launch.shape import KernelShape
from autotune.launch.space import SearchSpace
from autotune.measure import Measurement, Runner, never_stop
from autotune.measure.recording import RecordingRunner, RecordingWriter

#: Called with a finished shape, its outcomes, its number from 1, and the number of shapes.
Progress = Callable[[KernelShape, Counter[str], int, int], None]


def record(  # noqa: PLR0913 - each by its name
    runner: Runner,
    path: Path,
    *,
    shapes: Sequence[KernelShape],
    axes: Mapping[LoraOp, Mapping[str, Sequence[int]]],
    sample: int | None,
    seed: int,
    progress: Progress,
) -> None:
    """Measure every configuration of every shape in full.

    After an interruption the recording holds what was measured until then.

    Args:
        runner: Measures.
        path: The recording to write.
        shapes: What to measure.
        axes: Per op the values that replace the usual ones, per parameter.
        sample: Measure only this many configurations of each shape, among them the default.
        seed: Decides which configurations are in the sample.
        progress: Called after every shape.

    Raises:
        AutotuneError: The file cannot be written, or the runner cannot measure at all.
    """
    with RecordingWriter(path, runner.environment, runner.ceilings()) as writer:
        recorder = RecordingRunner(runner, writer)
        for number, shape in enumerate(shapes, start=1):
            space = recorder.space(shape, axes[shape.op])
            measurements = measure_all(recorder, shape, _sample(space, sample, seed))
            outcomes = Counter(measurement.outcome.value for measurement in measurements)
            progress(shape, outcomes, number, len(shapes))


def measure_all(
    runner: Runner, shape: KernelShape, configs: Iterable[KernelConfig]
) -> Iterator[Measurement]:
    """Measure distinct configurations of a shape in full, in the order in which they are ready."""
    pending = dict.fromkeys(configs)
    while pending:
        ahead = list(pending)[: runner.lookahead]
        measurement = runner.measure(shape, ahead, never_stop)
        del pending[measurement.config]
        yield measurement


def _sample(space: SearchSpace, size: int | None, seed: int) -> list[KernelConfig]:
    others = [config for config in space.configs if config != space.default]
    if size is not None and size <= len(others):
        # Not for secrets: the same seed must draw the same sample.
        others = random.Random(seed).sample(others, size - 1)  # noqa: S311
    return [space.default, *others]
