"""Shapes that were searched before: of an older database, and of the shipped recordings."""

from __future__ import annotations

import functools

from autotune.errors import InputError
from autotune.launch.environment import Environment
from autotune.launch.shape import KernelShape
from autotune.measure import Measurement, Runner
from autotune.measure.replay import ReplayRunner, shipped_recording
from autotune.search.samplers.transfer import Neighbour
from autotune.store import Store, shown


def finished_earlier(url: str, environment: Environment) -> list[Neighbour]:
    """The shapes of a database that have a selection, on the same GPU with the same provider.

    Drivers and versions may differ: what was fast there is tried first, and measured again.

    Args:
        url: The older database.
        environment: Where shapes will be searched now.

    Raises:
        StorageError: The database is missing or cannot be read.
        InputError: The database has no such shape.
    """
    store = Store(url, read_only=True)
    try:
        found = []
        for measured_in, selection in store.selections():
            if measured_in.is_like(environment):
                shape = selection.shape
                record = store.study_of(shape, measured_in)
                measurements = [item.measurement for item in store.finished(record)]
                found.append(Neighbour(shape, measurements))
    finally:
        store.close()
    if not found:
        raise InputError(
            f"--warm-start: {shown(url)} holds no finished shape of {environment.gpu} with "
            f"{environment.provider} kernels; give another database, or none"
        )
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
        for measured_in, shape, measurements in _shipped()
        if shape not in runner.answered
    ]


@functools.cache
def _shipped() -> tuple[tuple[Environment, KernelShape, tuple[Measurement, ...]], ...]:
    runners = [ReplayRunner([path]) for path in sorted(shipped_recording().parent.glob("*.gz"))]
    return tuple(
        (runner.environment, shape, tuple(runner.recorded(shape)))
        for runner in runners
        for shape in runner.shapes
    )
