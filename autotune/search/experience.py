"""What the recording that comes with autotune tells a search, before anything is measured here."""

from __future__ import annotations

import functools

from autotune.environment import Environment
from autotune.measure.replay import ReplayRunner, shipped_recording
from autotune.search.transfer import Neighbour


def experience(environment: Environment) -> tuple[Neighbour, ...]:
    """The shapes of the shipped recording, to learn from like finished ones.

    They were measured elsewhere, with other kernels: they say where to look first, and what is
    measured here outvotes them. None of them where that recording itself is searched: the answers
    would be known.

    Args:
        environment: Where shapes are to be searched.
    """
    measured_in, shapes = _shipped()
    return () if environment == measured_in else shapes


@functools.cache
def _shipped() -> tuple[Environment, tuple[Neighbour, ...]]:
    runner = ReplayRunner([shipped_recording()])
    shapes = (
        Neighbour(shape, tuple(runner.recorded(shape)), is_elsewhere=True)
        for shape in runner.shapes
    )
    return runner.environment, tuple(shapes)
