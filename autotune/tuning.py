"""The main job: every shape of a plan tuned, one after the other."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from autotune.environment import Environment
from autotune.measure import Runner
from autotune.measure.recording import RecordingRunner, RecordingWriter
from autotune.plan import StudyPlan
from autotune.search import Budget, ShapeTuner, TrialMirror
from autotune.selection import Selection
from autotune.shapes import KernelShape
from autotune.store import Store


@dataclass(frozen=True, slots=True, kw_only=True)
class Tuned:
    """What came of one shape.

    Attributes:
        shape: The shape.
        selection: The configuration chosen; None where none works.
        trials: Distinct configurations measured, earlier runs included.
        outcomes: How many of them ended in which outcome.
    """

    shape: KernelShape
    selection: Selection | None
    trials: int
    outcomes: Counter[str]


#: Told of every shape when it is done: what came of it, its number from 1, and how many there are.
Progress = Callable[[Tuned, int, int], None]


def tune(
    plan: StudyPlan, runner: Runner, progress: Progress, *, record: Path | None = None
) -> Sequence[Tuned]:
    """Tune every shape of a plan; each ends with its selection in the plan's database.

    What is measured is kept at once: after an interruption the same call goes on where it stopped.

    Args:
        plan: What to tune, and where to keep it.
        runner: Measures.
        progress: Called after every shape.
        record: A recording to write of everything measured, earlier runs included.

    Raises:
        AutotuneError: Something cannot be used as it is; what was measured is kept.
    """
    if record is not None:
        with RecordingWriter(record, runner.environment) as writer:
            return tune(plan, RecordingRunner(runner, writer), progress)
    spaces = [runner.space(shape, plan.axes[shape.op]) for shape in plan.shapes]
    end = None if plan.time_budget_s is None else time.monotonic() + plan.time_budget_s
    overrun_s = 0.0
    store = Store(plan.storage)
    mirror = TrialMirror(plan.storage)
    tuned: list[Tuned] = []
    try:
        for number, space in enumerate(spaces, start=1):
            tuner = ShapeTuner(
                runner, space, store=store, mirror=mirror, sampler=plan.sampler, seed=plan.seed
            )
            deadline = _deadline(end, shapes_left=len(spaces) - number + 1, overrun_s=overrun_s)
            selection = tuner.run(Budget(trials=plan.trials, deadline=deadline))
            if deadline is not None:
                overrun_s = max(0.0, time.monotonic() - deadline)
            outcomes = tuner.outcomes
            tuned.append(
                Tuned(
                    shape=space.shape,
                    selection=selection,
                    trials=outcomes.total(),
                    outcomes=outcomes,
                )
            )
            progress(tuned[-1], number, len(spaces))
    finally:
        mirror.close()
        store.close()
    return tuned


def stored_selections(url: str) -> list[tuple[Environment, list[Selection]]]:
    """The selections in a database, by the environment in which they were measured.

    Raises:
        StorageError: The database cannot be used.
    """
    store = Store(url, must_exist=True)
    try:
        grouped: dict[Environment, list[Selection]] = {}
        for environment, selection in store.selections():
            grouped.setdefault(environment, []).append(selection)
    finally:
        store.close()
    return list(grouped.items())


def _deadline(end: float | None, *, shapes_left: int, overrun_s: float) -> float | None:
    """When the next of so many shapes must be done, so that each gets as long as the others.

    Args:
        end: When all of them must be; None for no limit.
        shapes_left: How many there are, the next one included.
        overrun_s: How long the one before went on after its deadline, with its finalists.
    """
    if end is None:
        return None
    now = time.monotonic()
    return now + max(0.0, (end - now) / shapes_left - overrun_s)
