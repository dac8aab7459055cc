"""The whole job of ``autotune run`` and ``autotune.tune``, from a plan to what is exported."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from autotune.choose.selection import Selection
from autotune.errors import InputError
from autotune.launch.environment import Environment
from autotune.measure import Runner
from autotune.plan.notes import notes
from autotune.plan.study import StudyPlan
from autotune.search.events import Tuned, Watch
from autotune.search.session import Session
from autotune.search.tune import look_between, tune
from autotune.store.chosen import chosen_together


@dataclass(frozen=True, slots=True, kw_only=True)
class Done:
    """What came of a job.

    Attributes:
        environment: Where it was measured.
        tuned: What came of every shape; with ``--tokens auto`` also of the rows that were added,
            and without those that were merged.
        selections: What is exported: theirs, and those of ops that their MoE layers lack.
        lines: What is to be told of the rows between the tuned ones.
    """

    environment: Environment
    tuned: Sequence[Tuned]
    selections: Sequence[Selection]
    lines: Sequence[str]


def check_rows_max(plan: StudyPlan, rows_max: int | None) -> None:
    """Refuse a limit of rows where the batch sizes were given.

    Raises:
        InputError: ``rows_max`` is given, and the plan names its batch sizes.
    """
    if rows_max is not None and not plan.is_auto:
        raise InputError(
            f"--rows-max is for --tokens auto, not for batch sizes that were given: "
            f"got {rows_max}; leave one of the two out"
        )


def run_job(
    plan: StudyPlan,
    runner: Runner,
    watch: Watch,
    *,
    say: Callable[[str], None],
    record: Path | None = None,
    rows_max: int | None = None,
) -> Done:
    """Tune every shape of a plan, and with ``--tokens auto`` look between its batch sizes.

    Args:
        plan: What to tune, and where to keep it.
        runner: Measures.
        watch: Told of every trial and every shape.
        say: Told in a line each what is to be known before and meanwhile.
        record: A recording to write of everything measured.
        rows_max: With ``--tokens auto``, how many rows a layer may have; None for any number.

    Raises:
        AutotuneError: Something cannot be used as it is; what was measured is kept.
    """
    check_rows_max(plan, rows_max)
    for line in (*plan.notes, *notes(plan.shapes, runner.environment)):
        say(line)
    lines: Sequence[str] = ()
    with Session(plan, runner, watch, record=record) as session:
        tuned = tune(session)
        if plan.is_auto:
            say("Timing the captured batch sizes between the tuned ones.")
            tuned, refined = look_between(session, tuned, rows_max=rows_max)
            lines = refined.lines
        own = [result.selection for result in tuned if result.selection]
        selections = chosen_together(own, session.store, runner.environment)
    return Done(environment=runner.environment, tuned=tuned, selections=selections, lines=lines)
