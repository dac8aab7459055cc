"""The progress of every study in a database, and the runs that are under way."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta
from typing import Any

import sqlalchemy as sa

from autotune.choose.selection import Selection
from autotune.launch.config import KernelConfig
from autotune.launch.environment import Environment
from autotune.launch.shape import KernelShape
from autotune.measure import Outcome
from autotune.measure.measurement import Replayed
from autotune.store import facts, schema
from autotune.store.alive import is_dead
from autotune.store.claims import Holder, shares
from autotune.store.faults import undamaged
from autotune.store.finished import finished_of
from autotune.store.load import Load, loads
from autotune.store.runs import SILENT_S
from autotune.store.store import Store
from autotune.untrusted import parse_json

#: The states of a study.
RUNNING, DONE, TO_DO = "running", "done", "to do"


@dataclass(frozen=True, slots=True, kw_only=True)
class RunState:
    """The progress of one run. All times are naive UTC.

    Attributes:
        id: The run's number in the database.
        host: The machine that the run is on.
        process: The number of its process there.
        started_at: When the run began.
        seen_at: When the run last wrote that it is there.
        ended_at: When the run ended; None where it has not written that.
        state: ``running``, ``done``, ``interrupted``, ``failed``, or ``gone`` if it was killed.
        study_id: The number of the study that is searched now; None where none is.
        load: How busy it is, or was.
    """

    id: int
    host: str
    process: int
    started_at: datetime
    seen_at: datetime
    ended_at: datetime | None
    state: str
    study_id: int | None
    load: Load = field(default_factory=Load)


@dataclass(frozen=True, slots=True, kw_only=True)
class Work:
    """The part of a run's GPU in a study.

    Attributes:
        host: The machine that the run is or was on.
        process: The number of its process there.
        device: The GPU of it that has measured; empty where that is not known.
        trials: How many of the study's configurations it has measured.
        since: Since when it has the study, naive UTC; None where it does not have it.
    """

    host: str
    process: int
    device: str = ""
    trials: int = 0
    since: datetime | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class StudyState:
    """The progress of one study.

    Attributes:
        name: The study's name in Optuna.
        shape: The shape that is searched.
        environment: Where the shape is measured.
        state: One of ``RUNNING``, ``DONE`` and ``TO_DO``.
        trials: How many configurations are measured.
        most: How many configurations will be measured at most; None where no run has planned it.
        default_us: Latency of vLLM's default, microseconds; None where the default is not measured
            or does not run.
        best_us: Latency of the configuration chosen, or of the fastest so far, microseconds; None
            where none works.
        selection: The selection; None where nothing is chosen yet.
        last_at: When a configuration was last measured, naive UTC; None where none was.
        layers: Names of the model's layers that launch the shape; empty where no run has said.
        replayed: The recordings that answered for a run; None where a GPU measures.
        works: The runs that have measured it, in their order, and the one that has it now.
    """

    name: str
    shape: KernelShape
    environment: Environment
    state: str
    trials: int
    most: int | None
    default_us: float | None
    best_us: float | None
    selection: Selection | None
    last_at: datetime | None
    layers: str = ""
    replayed: Replayed | None = None
    works: tuple[Work, ...] = ()

    @property
    def holder(self) -> Work | None:
        """The run that has the study now; None where none has."""
        return next((work for work in self.works if work.since is not None), None)

    @property
    def ratio(self) -> float | None:
        """How many times as fast as the default: of the selection, or else of the best so far."""
        if self.selection is not None:
            return None if self.selection.ratio is None else self.selection.ratio.value
        if self.default_us is None or self.best_us is None:
            return None
        return self.default_us / self.best_us


@dataclass(frozen=True, slots=True, kw_only=True)
class Overview:
    """What a database holds at one moment.

    Attributes:
        runs: The latest run, then every other run that is under way, later ones first.
        studies: The studies in the order in which the latest runs search them, then all others by
            name.
        now: The moment, naive UTC.
    """

    runs: tuple[RunState, ...]
    studies: tuple[StudyState, ...]
    now: datetime

    def count(self, state: str) -> int:
        """How many studies are in a state."""
        return sum(study.state == state for study in self.studies)

    @property
    def runs_by_state(self) -> tuple[tuple[int, str], ...]:
        """Every run's number and state."""
        return tuple((run.id, run.state) for run in self.runs)

    @property
    def trials(self) -> int:
        """How many configurations are measured, over all studies."""
        return sum(study.trials for study in self.studies)

    @property
    def last_at(self) -> datetime | None:
        """When a configuration of any study was last measured, naive UTC."""
        return max((each.last_at for each in self.studies if each.last_at), default=None)


def overview(store: Store, *, now: datetime | None = None) -> Overview:
    """Look at a database. Runs may write to it at the same time.

    Args:
        store: The database.
        now: The moment to compare with, naive UTC; the present by the clock of the database if not
            given.

    Raises:
        StorageError: The database cannot be read.
    """
    now = now or store.now()
    layers, replayed = facts.layers(store), facts.replayed(store)
    with store.transaction() as connection:
        runs = _runs(connection, now)
        plans = _latest_plans(connection)
        done = _done(connection, plans, runs)
        works = _works(connection, runs)
        searched = {run.study_id for run in runs if run.state == RUNNING}
        searched |= {study for study, those in works.items() if any(one.since for one in those)}
        rows = sorted(
            connection.execute(_studies_query()),
            key=lambda row: (_place(plans.get(row.id)), row.name),
        )
        studies = []
        for row in rows:
            with undamaged(store.url, f"study {row.id}"):
                plan = plans.get(row.id)
                is_done = row.id in done if plan else row.selection is not None
                state = RUNNING if row.id in searched else DONE if is_done else TO_DO
                study = _study(connection, row, plan, state)
                studies.append(replace(study, works=works.get(row.id, ())))
    named = [
        replace(_named(each, layers), replayed=replayed.get((each.environment, each.shape)))
        for each in studies
    ]
    others = [run for run in runs[1:] if run.state == RUNNING]
    return Overview(runs=(*runs[:1], *others), studies=tuple(named), now=now)


def _named(
    study: StudyState, layers: Mapping[tuple[Environment, KernelShape], facts.LayerUse]
) -> StudyState:
    use = layers.get((study.environment, study.shape))
    return study if use is None else replace(study, layers=use.names)


def _place(plan: Any) -> tuple[int, int]:  # noqa: ANN401 - a row
    """A sort key: studies of later runs first, studies that no run has planned last."""
    return (1, 0) if plan is None else (-plan.run_id, plan.number)


def _runs(connection: sa.Connection, now: datetime) -> list[RunState]:
    table = schema.runs
    found, of_run = [], loads(connection)
    for row in connection.execute(sa.select(table).order_by(table.c.id.desc())):
        is_silent = now - row.seen_at > timedelta(seconds=SILENT_S)
        is_gone = is_silent or (row.ending is None and is_dead(row.process, row.birth))
        state = row.ending or ("gone" if is_gone else RUNNING)
        names = ("id", "host", "process", "started_at", "seen_at", "ended_at", "study_id")
        values = {name: getattr(row, name) for name in names}
        found.append(RunState(**values, state=state, load=of_run[row.id]))
    return found


def _latest_plans(connection: sa.Connection) -> Mapping[int, Any]:
    """For every study the plan of the latest run that searches it."""
    rows = connection.execute(sa.select(schema.planned).order_by(schema.planned.c.run_id))
    return {row.study_id: row for row in rows}


def _done(
    connection: sa.Connection, plans: Mapping[int, Any], runs: Sequence[RunState]
) -> set[int]:
    """The studies that a run has done since the latest run that searches them began."""
    began = {run.id: run.started_at for run in runs}
    ended = sa.select(schema.planned).where(schema.planned.c.done_at.is_not(None))
    return {
        row.study_id
        for row in connection.execute(ended)
        if row.done_at >= began.get(plans[row.study_id].run_id, row.done_at)
    }


def _works(connection: sa.Connection, runs: Sequence[RunState]) -> Mapping[int, tuple[Work, ...]]:
    """For every study the runs that have measured it, and the one that has it now."""
    under_way = {run.id: run for run in runs if run.state == RUNNING}
    trials, since = shares(connection), {}
    for claim in connection.execute(sa.select(schema.claims)):
        if (run := under_way.get(claim.run_id)) is not None:
            those = trials.setdefault(claim.study_id, Counter())
            mine = [by for by in those if by.run == run.id]
            by = mine[-1] if mine else Holder(run=run.id, host=run.host, process=run.process)
            those.setdefault(by, 0)
            since[claim.study_id, by] = claim.since
    return {
        study: tuple(
            Work(
                host=by.host,
                process=by.process,
                device=by.device,
                trials=count,
                since=since.get((study, by)),
            )
            for by, count in those.items()
        )
        for study, those in trials.items()
    }


def _studies_query() -> sa.Select[Any]:
    studies, measured = schema.studies, schema.measurements
    counts = (
        sa.select(
            measured.c.study_id,
            sa.func.count().label("trials"),
            sa.func.max(measured.c.finished_at).label("last_at"),
        )
        .group_by(measured.c.study_id)
        .subquery()
    )
    return (
        sa.select(studies, counts.c.trials, counts.c.last_at, schema.selections.c.selection)
        .outerjoin(counts, counts.c.study_id == studies.c.id)
        .outerjoin(schema.selections, schema.selections.c.study_id == studies.c.id)
    )


def _study(
    connection: sa.Connection,
    row: Any,  # noqa: ANN401 - a row
    plan: Any,  # noqa: ANN401 - a row
    state: str,
) -> StudyState:
    shape = KernelShape.from_mapping(parse_json(row.shape))
    selection = None if row.selection is None else Selection.from_json(row.selection)
    default_us = best_us = None
    if selection is not None:
        default_us, best_us = selection.default_latency_us, selection.latency_us
    elif row.trials:
        latencies = _latencies_us(connection, row.id, shape)
        best_us = min(latencies.values(), default=None)
        if plan is not None:
            default = KernelConfig.from_mapping(shape.op, parse_json(plan.default))
            default_us = latencies.get(default)
    return StudyState(
        name=row.name,
        shape=shape,
        environment=Environment.from_mapping(parse_json(row.environment)),
        state=state,
        trials=row.trials or 0,
        most=None if plan is None else plan.trials,
        default_us=default_us,
        best_us=best_us,
        selection=selection,
        last_at=row.last_at,
    )


def _latencies_us(
    connection: sa.Connection, study_id: int, shape: KernelShape
) -> Mapping[KernelConfig, float]:
    """The median latency of every configuration that works, microseconds."""
    table = schema.measurements
    works = (table.c.study_id == study_id) & (table.c.outcome == Outcome.OK.value)
    rows = connection.execute(sa.select(table).where(works))
    measured = [finished_of(shape, row).measurement for row in rows]
    return {each.config: each.latency_us for each in measured}
