"""Claims: which run searches which study, so that runs that share a database share the work.

A run takes a study for itself in one statement, which succeeds only if no other run that is still
there has it. It gives it back when the search is over. A run that was killed gives nothing back:
its studies are taken over, at once by a run on the same host, and otherwise when it has been silent
for a while. Should it only have been stopped, it finds out at its next write, which then fails as a
whole.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import TYPE_CHECKING, Any

import sqlalchemy as sa

from autotune.errors import ClaimLost
from autotune.launch.shape import KernelShape
from autotune.store import schema
from autotune.store.patience import Patience, outlasted

if TYPE_CHECKING:
    from autotune.store.runs import RunLog
    from autotune.store.store import Store, StudyRecord


@dataclass(frozen=True, slots=True, kw_only=True)
class Claim:
    """A study that a run has taken for itself."""

    study: int
    run: int

    def confirm(self, connection: sa.Connection) -> None:
        """Make sure of the claim, and that nobody takes it before this transaction is over.

        Raises:
            ClaimLost: Another run has the study now.
        """
        table = schema.claims
        mine = (table.c.study_id == self.study) & (table.c.run_id == self.run)
        same = sa.update(table).where(mine).values(run_id=self.run)
        if connection.execute(same).rowcount != 1:
            raise ClaimLost("another run has taken over what this one searched; it goes on there")


@dataclass(frozen=True, slots=True, kw_only=True)
class Taken:
    """A shape that was taken.

    Attributes:
        shape: The shape.
        is_done: Whether another run has searched it, with the same budget, while this run was under
            way.
    """

    shape: KernelShape
    is_done: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class Holder:
    """A run that has taken studies, or has measured some of their configurations.

    Attributes:
        run: Its number in the database.
        host: The machine that it is on.
        process: The number of its process there.
        device: The GPU of it that has measured; empty where that is not known, or no matter.
    """

    run: int
    host: str
    process: int
    device: str = ""


def shares(connection: sa.Connection) -> dict[int, Counter[Holder]]:
    """How many configurations of each study each GPU of each run has measured, by its number.

    What was measured before databases said so is left out.
    """
    measured, runs = schema.measurements.c, schema.runs.c
    count = sa.func.count().label("trials")
    of = (measured.study_id, measured.device, runs.id, runs.host, runs.process)
    query = (
        sa.select(*of, count)
        .join(schema.runs, runs.id == measured.run_id)
        .group_by(*of)
        .order_by(measured.study_id, runs.id, measured.device)
    )
    found: dict[int, Counter[Holder]] = {}
    for row in connection.execute(query):
        device = row.device or ""
        holder = Holder(run=row.id, host=row.host, process=row.process, device=device)
        found.setdefault(row.study_id, Counter())[holder] = row.trials
    return found


class Claims:
    """The studies that one run has taken, of those that it is to search.

    Attributes:
        others: The runs that had some of the shapes that were asked for last, and how many of them.
        has_company: Whether another run has had any of the shapes meanwhile.
    """

    def __init__(self, store: Store, log: RunLog, *, budget: str) -> None:
        """Take nothing yet.

        Args:
            store: The run's database.
            log: The run's entry in it.
            budget: Names what ends the run's searches. A study that was searched with the same
                budget meanwhile is not searched again.
        """
        self._store, self._log, self._budget = store, log, budget
        self._taken: dict[int, Claim] = {}
        self._known_ends: dict[int, int] = {}
        self.others: Counter[Holder] = Counter()
        self.has_company = False

    @property
    def patience(self) -> Patience:
        """That of the database."""
        return self._store.patience

    def of(self, study: StudyRecord) -> Claim | None:
        """The claim to a study; None where it was not taken."""
        return self._taken.get(study.id)

    @outlasted
    def take(self, shapes: Sequence[KernelShape]) -> Taken | None:
        """Take one shape: one that another run has finished, or else the first that is free.

        A run that has shapes takes no more of them than its share, so that other runs that are
        under way have something to search, too.

        Returns:
            The shape; None where other runs have all of them, or shall have them.

        Raises:
            StorageError: The database cannot be used.
        """
        ids = {self._log.study_id(shape): shape for shape in shapes}
        places = {study: place for place, study in enumerate(ids)}
        with self._store.transaction() as connection:
            rows = self._rows(connection, ids)
            self._know(ids, rows)
            now = connection.execute(sa.select(schema.clock())).scalar_one()
            held = {each for each, row in rows.items() if self._is_held(row, now)}
            self._note_others(rows[each] for each in held)
            done = {each for each, row in rows.items() if self._is_done(row)}
            self.has_company |= bool(held or done)
            free = done - held if self._has_its_share(connection, ids, now) else ids.keys() - held
            for each in sorted(free, key=lambda one: (one not in done, places[one])):
                if self._swap(connection, each, rows.get(each)):
                    self._taken[each] = Claim(study=each, run=self._log.run_id)
                    return Taken(shape=ids[each], is_done=each in done)
        return None

    @outlasted
    def give_back(self, shape: KernelShape, *, has_grown: bool) -> None:
        """Let other runs have a shape.

        Args:
            shape: One that was taken.
            has_grown: Whether anything was measured.

        Raises:
            StorageError: The database cannot be used.
        """
        study, table = self._log.study_id(shape), schema.claims
        claim = self._taken.get(study)
        if claim is None:
            return
        values: dict[str, Any] = {"run_id": None}
        if has_grown:
            values |= {"ends": table.c.ends + 1, "budget": self._budget}
        mine = (table.c.study_id == study) & (table.c.run_id == claim.run)
        with self._store.transaction() as connection:
            changed = connection.execute(sa.update(table).where(mine).values(values)).rowcount
        self._known_ends[study] += has_grown and changed == 1
        del self._taken[study]

    def forget(self, shape: KernelShape) -> None:
        """Note that another run has taken over a shape."""
        self._taken.pop(self._log.study_id(shape), None)
        self.has_company = True

    def _has_its_share(
        self, connection: sa.Connection, ids: Mapping[int, KernelShape], now: datetime
    ) -> bool:
        """Whether the runs under way would have too few, if this one took one more of these."""
        if not self._taken:
            return False
        runs, planned = schema.runs, schema.planned.c
        plan_them = sa.select(planned.run_id).where(planned.study_id.in_(list(ids)))
        query = sa.select(runs).where(runs.c.ending.is_(None), runs.c.id.in_(plan_them))
        rows = [row for row in connection.execute(query) if row.id != self._log.run_id]
        count = 1 + sum(not self._log.is_gone(row, now) for row in rows)
        return len(self._taken) >= math.ceil((len(ids) + len(self._taken)) / count)

    def _rows(
        self, connection: sa.Connection, ids: Mapping[int, KernelShape]
    ) -> dict[int, sa.Row[Any]]:
        claims, runs = schema.claims, schema.runs
        query = (
            sa.select(claims, runs.c.host, runs.c.process, runs.c.birth, runs.c.seen_at)
            .add_columns(runs.c.ending)
            .outerjoin(runs, runs.c.id == claims.c.run_id)
            .where(claims.c.study_id.in_(list(ids)))
        )
        return {row.study_id: row for row in connection.execute(query)}

    def _know(self, ids: Mapping[int, KernelShape], rows: Mapping[int, sa.Row[Any]]) -> None:
        """What had ended before a study was asked for the first time is no news."""
        for each in ids:
            self._known_ends.setdefault(each, rows[each].ends if each in rows else 0)

    def _is_held(self, row: sa.Row[Any], now: datetime) -> bool:
        if row.run_id in (None, self._log.run_id):
            return False
        return row.ending is None and not self._log.is_gone(row, now)

    def _is_done(self, row: sa.Row[Any]) -> bool:
        return bool(row.ends > self._known_ends[row.study_id] and row.budget == self._budget)

    def _swap(self, connection: sa.Connection, study: int, row: sa.Row[Any] | None) -> bool:
        """Put this run in the place of the one that was seen; false if another run was faster."""
        table = schema.claims
        values = {"run_id": self._log.run_id, "since": schema.clock()}
        if row is None:
            new = {"study_id": study, "ends": 0, "budget": ""}
            connection.execute(sa.insert(table).values(new | values))
            return True
        seen = table.c.run_id.is_(None) if row.run_id is None else table.c.run_id == row.run_id
        same = (table.c.study_id == study) & seen & (table.c.ends == row.ends)
        if connection.execute(sa.update(table).where(same).values(values)).rowcount != 1:
            return False
        self._known_ends[study] = row.ends
        return True

    def _note_others(self, rows: Any) -> None:  # noqa: ANN401 - rows
        self.others = Counter(
            Holder(run=row.run_id, host=row.host, process=row.process) for row in rows
        )
