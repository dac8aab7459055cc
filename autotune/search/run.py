"""The whole job of ``autotune run`` and ``autotune.tune``, from a plan to what is exported."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from types import MappingProxyType

from autotune.choose.selection import Selection
from autotune.choose.served import served_lines
from autotune.choose.slower import slower_lines
from autotune.errors import InputError, RecordingError, StorageError
from autotune.files import try_file, write_errors
from autotune.launch.config import KernelConfig
from autotune.launch.environment import Environment
from autotune.launch.shape import KernelShape
from autotune.measure import Runner
from autotune.plan.file import ADAPTIVE
from autotune.plan.notes import notes
from autotune.plan.study import StudyPlan
from autotune.search.events import Tuned, Watch
from autotune.search.samplers.known import shipped
from autotune.search.session import Session
from autotune.search.tune import look_between, tune
from autotune.search.tuner import CONFIRMING_TRIALS
from autotune.store import database_file
from autotune.store.chosen import chosen_together


@dataclass(frozen=True, slots=True, kw_only=True)
class Done:
    """The result of a job.

    Attributes:
        environment: Where the shapes were measured.
        tuned: The result of every shape. With ``--tokens auto`` added rows are included, and
            merged rows are left out.
        selections: What is exported: the selections of ``tuned``, and those of earlier runs for ops
            that a MoE layer lacks.
        lines: What the user is told about the rows between the tuned ones, and about those that are
            slower than a default that may not be chosen.
    """

    environment: Environment
    tuned: Sequence[Tuned]
    selections: Sequence[Selection]
    lines: Sequence[str]


def check_rows_max(plan: StudyPlan, rows_max: int | None) -> None:
    """Refuse a limit of rows where the user has named the batch sizes.

    Raises:
        InputError: ``rows_max`` is given, and so are the plan's batch sizes.
    """
    if rows_max is not None and not plan.is_auto:
        raise InputError(
            f"--rows-max is for --tokens auto, not for batch sizes that were given: "
            f"got {rows_max}; leave one of the two out"
        )


def check_kernels(plan: StudyPlan, runner: Runner) -> None:
    """Refuse recordings of other kernels than a plan asks for.

    Raises:
        InputError: The runner is a replay, of kernels of another provider than the plan's.
    """
    recorded = runner.environment.provider
    if runner.replayed is not None and plan.kernels not in ("auto", recorded):
        raise InputError(
            f"the plan asks for {plan.kernels} kernels, and the recording is of {recorded} "
            "kernels: leave kernels out, or give another recording"
        )


def check_axes(plan: StudyPlan) -> None:
    """Refuse a deterministic plan whose axes have no configuration that does not split k.

    Raises:
        InputError: The plan is deterministic, and a ``split_k`` that it gives has no 1.
    """
    for op, axes in plan.axes.items():
        if plan.deterministic and 1 not in axes.get("split_k", (1,)):
            raise InputError(
                f"{plan.source}: [search.space.{op.value}] split_k must have a 1 where "
                f"deterministic is asked for: got {list(axes['split_k'])}; add 1, or leave one of "
                "the two out"
            )


def check_places(plan: StudyPlan, record: Path | None = None) -> None:
    """Refuse a database or a recording that cannot be written, before anything is measured.

    Nothing is made. A database on a server is tried when the run opens it.

    Raises:
        StorageError: The plan's database cannot be written.
        RecordingError: The recording cannot be written.
    """
    database = database_file(plan.storage)
    if database is not None:
        advice = "free the place, or give another --storage"
        with write_errors(database, StorageError, advice=advice):
            if database.exists():
                database.open("r+b").close()
        try_file(database, StorageError, advice=advice)
    if record is not None:
        try_file(record, RecordingError, advice="free the place, or name another file")


def read_ahead(plan: StudyPlan) -> None:
    """Read and import what a run of a plan needs, while the processes that measure start."""
    if plan.sampler == ADAPTIVE:
        shipped()
    importlib.import_module("alembic.command")  # Optuna does so when it opens a database


def _known_lines(session: Session) -> Iterator[str]:
    """What the user is told of shapes that are confirmed, not searched."""
    count = sum(session.known(space) is not None for space in session.spaces)
    if count:
        environment = session.runner.environment
        yield (
            f"Of {len(session.spaces)} shapes autotune's own collection holds {count} for this GPU "
            f"and {environment.kernels}: they are confirmed in {CONFIRMING_TRIALS} trials each, "
            "beside the default; --no-configs searches them, too."
        )


def run_job(  # noqa: PLR0913 - each by its name
    plan: StudyPlan,
    runner: Runner | Sequence[Runner],
    watch: Watch,
    *,
    say: Callable[[str], None],
    record: Path | None = None,
    rows_max: int | None = None,
    known: Mapping[KernelShape, KernelConfig] = MappingProxyType({}),
) -> Done:
    """Tune every shape of a plan; with ``--tokens auto`` also time the batch sizes between.

    Args:
        plan: What to tune, and the database to keep it in.
        runner: Measures configurations; several of them, one a GPU, do so side by side.
        watch: Called with every event.
        say: Called with each line that the user should read before and during the run.
        record: The file to record every measurement to; None for no recording.
        rows_max: With ``--tokens auto``, how many rows a layer may have; None for any number.
        known: Configurations that were chosen before, as ``Session`` takes them.

    Raises:
        AutotuneError: The plan, the runner, the database or the recording cannot be used. What was
            measured before is kept.
    """
    check_rows_max(plan, rows_max)
    runners = [runner] if isinstance(runner, Runner) else runner
    for each in runners:
        each.environment = replace(each.environment, deterministic=plan.deterministic)
    environment = runners[0].environment
    check_kernels(plan, runners[0])
    check_axes(plan)
    check_places(plan, record)
    for line in (*plan.notes, *notes(plan.shapes, environment)):
        say(line)
    lines: Sequence[str] = ()
    with Session(plan, runners, watch, record=record, known=known, say=say) as session:
        for line in _known_lines(session):
            say(line)
        tuned = tune(session)
        rows: Sequence[Selection] = [result.selection for result in tuned if result.selection]
        if plan.is_auto:
            say("Timing the captured batch sizes between the tuned ones.")
            tuned, rows, refined = look_between(session, tuned, rows_max=rows_max)
            lines = refined.lines
        selections = chosen_together(rows, session.store, environment)
        if plan.is_auto:
            lines = [*lines, *served_lines(selections, plan.warmed, environment)]
        lines = [*lines, *slower_lines(selections)]
    return Done(environment=environment, tuned=tuned, selections=selections, lines=lines)
