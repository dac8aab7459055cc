"""The shapes and selections that a recording or a database holds, as commands ask for them."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from autotune.errors import InputError

if TYPE_CHECKING:
    from autotune.choose.selection import Selection
    from autotune.cli.shape_flags import ShapeFlags
    from autotune.launch.environment import Environment
    from autotune.launch.shape import KernelShape
    from autotune.plan.study import StudyPlan


def selections_in(storage: str) -> list[tuple[Environment, list[Selection]]]:
    """The selections of a database, by the environment in which they were measured.

    Raises:
        InputError: The database cannot be used, or holds no finished shape.
    """
    from autotune.store.chosen import stored_selections

    stored = stored_selections(storage)
    if not stored:
        raise InputError("the database holds no finished shape; tune one with autotune run")
    return stored


def plans_by_gpu(
    flags: ShapeFlags, *, replay: Sequence[Path] | None, storage: str | None
) -> dict[str | None, StudyPlan]:
    """The plans whose shapes are looked up, each for the GPU of a recording or a database.

    Without recording and database the GPU is that of the trace, else None, and without any flag
    there is no plan.

    Raises:
        InputError: A flag, the recording or the database cannot be used.
    """
    known = _shapes_by_gpu(replay, storage)
    if known:
        return {gpu: flags.plan(shapes) for gpu, shapes in known.items()}
    if not flags.given:
        return {}
    plan = flags.plan()
    return {plan.trace.gpu or None if plan.trace else None: plan}


def _shapes_by_gpu(
    replay: Sequence[Path] | None, storage: str | None
) -> dict[str, tuple[KernelShape, ...]]:
    from autotune.measure.runners import replay_runner

    if replay:
        recorded = replay_runner(replay)
        return {recorded.environment.gpu: recorded.shapes}
    # A dict for each GPU, as several environments may hold the same shape.
    found: dict[str, dict[KernelShape, None]] = {}
    for environment, selections in selections_in(storage) if storage else ():
        found.setdefault(environment.gpu, {}).update(dict.fromkeys(s.shape for s in selections))
    return {gpu: tuple(shapes) for gpu, shapes in found.items()}
