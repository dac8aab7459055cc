"""What the recordings that come with autotune tell a search, before anything is measured here."""

from __future__ import annotations

import functools

from autotune.launch.environment import Environment
from autotune.launch.shape import KernelShape
from autotune.measure import Measurement, Runner
from autotune.measure.replay import ReplayRunner, shipped_recording
from autotune.search.samplers.transfer import Neighbour


def experience(runner: Runner) -> list[Neighbour]:
    """The shapes of the shipped recordings, to learn from like finished ones.

    They were measured on an H100, some with other kernels: they say where to look first, and what
    is measured here outvotes them. Of what a replay answers for nothing is told, nor of the same
    shapes measured elsewhere: the answers would be known.

    Args:
        runner: What shapes are to be searched with.
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
