"""Shapes that were searched before: of older databases and recordings, and of shipped ones."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from contextlib import closing
from pathlib import Path

from autotune.errors import InputError
from autotune.launch.environment import Environment
from autotune.launch.shape import KernelShape
from autotune.measure import Measurement, Runner
from autotune.measure.recording import read_recording
from autotune.measure.replay import ReplayRunner, shipped_recording
from autotune.search.samplers.transfer import Neighbour
from autotune.store import Store, shown

#: How the files of SQLite databases end.
_DATABASES = (".db", ".sqlite", ".sqlite3")


def finished_earlier(url: str, environment: Environment) -> list[Neighbour]:
    """The shapes of a database or a recording, on the same GPU with the same provider.

    Drivers and versions may differ: what was fast there is tried first, and measured again.

    Args:
        url: The older database, of which shapes with a selection count; or a recording's path.
        environment: Where shapes will be searched now.

    Raises:
        StorageError: The database is missing or cannot be read.
        RecordingError: The recording is missing or cannot be read.
        InputError: There is no such shape in it.
    """
    found = [
        Neighbour(shape, measurements)
        for measured_in, shape, measurements in measured_shapes(url)
        if measured_in.is_like(environment)
    ]
    if not found:
        raise InputError(
            f"--warm-start: {shown(url)} holds no finished shape of {environment.gpu} with "
            f"{environment.provider} kernels; give another, or none"
        )
    return found


def measured_shapes(
    source: str,
) -> list[tuple[Environment, KernelShape, Sequence[Measurement]]]:
    """The measurements of every shape of a database or a recording, and where they were made.

    Args:
        source: The URL or the file of a database, of which shapes with a selection count; or a
            recording's path.

    Raises:
        StorageError: The database is missing or cannot be read.
        RecordingError: The recording is missing or cannot be read.
    """
    if "://" not in source and Path(source).suffix in _DATABASES:
        source = f"sqlite:///{source}"
    if "://" not in source:
        recording = read_recording(Path(source))
        return [
            (recording.environment, shape, tuple(by_config.values()))
            for shape, by_config in recording.shapes.items()
        ]
    found: list[tuple[Environment, KernelShape, Sequence[Measurement]]] = []
    with closing(Store(source, read_only=True)) as store:
        for measured_in, selection in store.selections():
            record = store.study_of(selection.shape, measured_in)
            measurements = [item.measurement for item in store.finished(record)]
            found.append((measured_in, selection.shape, measurements))
    return found


def experience(runner: Runner) -> list[Neighbour]:
    """The shapes of the shipped recordings, to learn from like shapes of an earlier run.

    They were measured on an H100, some of them with other kernels. They say where to look first;
    measurements of the present search outvote them. A replay's own shapes are left out, wherever
    they were measured, so that a search cannot know its answer.

    Args:
        runner: The runner that shapes will be searched with.
    """
    return [
        Neighbour(shape, measurements, is_elsewhere=not measured_in.is_like(runner.environment))
        for measured_in, shape, measurements in shipped()
        if shape not in runner.answered
    ]


@functools.cache
def shipped() -> tuple[tuple[Environment, KernelShape, tuple[Measurement, ...]], ...]:
    """What the shipped recordings hold: where it was measured, the shape, and its measurements."""
    runners = [ReplayRunner([path]) for path in sorted(shipped_recording().parent.glob("*.gz"))]
    return tuple(
        (runner.environment, shape, tuple(runner.recorded(shape)))
        for runner in runners
        for shape in runner.shapes
    )
