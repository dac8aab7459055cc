"""Optuna's tables of trials: batches are inserted into them, and damage by older runs is mended.

Nothing of this is used where Optuna has other tables than those that ``optuna_tables`` knows.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from datetime import datetime, timezone
from typing import Any

import sqlalchemy as sa
from optuna.distributions import distribution_to_json
from optuna.trial import FrozenTrial

#: What makes a trial that of a measurement: when it began (naive UTC), and its parameters as
#: Optuna's tables hold them.
_Key = tuple[datetime | None, frozenset[tuple[str, float]]]

#: ``trial_id``, ``number`` and ``datetime_start`` of trials, by their numbers.
_Rows = Sequence["sa.Row[Any, Any, Any]"]


class TrialTables:
    """Writes to Optuna's tables within transactions of the caller."""

    def __init__(self, tables: sa.MetaData) -> None:
        """Use these tables."""
        self._tables = tables.tables

    def count(self, connection: sa.Connection, study: str) -> int:
        """How many trials a study has."""
        trials, studies = self._tables["trials"], self._tables["studies"]
        query = sa.select(sa.func.count()).select_from(trials.join(studies))
        return int(connection.execute(query.where(studies.c.study_name == study)).scalar_one())

    def insert(self, connection: sa.Connection, study: str, trials: Sequence[FrozenTrial]) -> None:
        """Append finished trials to a study, in this order."""
        if not trials:
            return
        study_id = self._locked(connection, study)
        table, first = self._tables["trials"], self.count(connection, study)
        rows = [
            {
                "number": number,
                "study_id": study_id,
                "state": trial.state,
                "datetime_start": _utc(trial.datetime_start),
                "datetime_complete": _utc(trial.datetime_complete),
            }
            for number, trial in enumerate(trials, start=first)
        ]
        insert = sa.insert(table).returning(table.c.trial_id, sort_by_parameter_order=True)
        ids = connection.execute(insert, rows).scalars().all()
        for name, parts in _parts(zip(ids, trials, strict=True)).items():
            if parts:
                connection.execute(sa.insert(self._tables[name]), parts)

    def mend(self, connection: sa.Connection, study: str, trials: Sequence[FrozenTrial]) -> int:
        """Add the trials that a study lacks, and delete those that it has twice.

        Trials that a user has added with Optuna stay.

        Args:
            connection: In a transaction.
            study: The study's name.
            trials: Those that the study must have, in their order.

        Returns:
            How many trials were there twice.
        """
        study_id = self._locked(connection, study)
        rows = self._rows(connection, study_id)
        starts = [_utc(trial.datetime_start) for trial in trials]
        there = [row.datetime_start for row in rows if row.datetime_start in set(starts)]
        if there == starts and _are_consecutive(rows):
            return 0
        wanted = {_key(trial): place for place, trial in enumerate(trials)}
        first: dict[_Key, int] = {}
        twice = [
            trial_id
            for trial_id, key in self._keys(connection, rows).items()
            if key in wanted and first.setdefault(key, trial_id) != trial_id
        ]
        self._delete(connection, twice)
        self.insert(connection, study, [one for one in trials if _key(one) not in first])
        self._put_in_order(connection, study_id, wanted)
        return len(twice)

    def set_attributes(
        self, connection: sa.Connection, study: str, attributes: Mapping[str, Any]
    ) -> None:
        """Set a study's system attributes."""
        study_id = self._locked(connection, study)
        table = self._tables["study_system_attributes"]
        rows = [{"study_id": study_id, **row} for row in _attribute_rows(attributes)]
        these = (table.c.study_id == study_id) & table.c.key.in_(list(attributes))
        connection.execute(sa.delete(table).where(these))
        connection.execute(sa.insert(table), rows)

    def _locked(self, connection: sa.Connection, study: str) -> int:
        """A study's number. Optuna, too, locks the row before it counts trials."""
        table = self._tables["studies"]
        query = sa.select(table.c.study_id).where(table.c.study_name == study).with_for_update()
        return int(connection.execute(query).scalar_one())

    def _rows(self, connection: sa.Connection, study_id: int) -> _Rows:
        table = self._tables["trials"]
        query = sa.select(table.c.trial_id, table.c.number, table.c.datetime_start)
        mine = query.where(table.c.study_id == study_id)
        return connection.execute(mine.order_by(table.c.number, table.c.trial_id)).all()

    def _keys(self, connection: sa.Connection, rows: _Rows) -> dict[int, _Key]:
        """The key of every trial, in the order given."""
        table = self._tables["trial_params"]
        query = sa.select(table.c.trial_id, table.c.param_name, table.c.param_value)
        ids = [row.trial_id for row in rows]
        found: dict[int, set[tuple[str, float]]] = {each: set() for each in ids}
        for trial_id, name, value in connection.execute(query.where(table.c.trial_id.in_(ids))):
            found[trial_id].add((name, value))
        return {row.trial_id: (row.datetime_start, frozenset(found[row.trial_id])) for row in rows}

    def _delete(self, connection: sa.Connection, ids: Sequence[int]) -> None:
        names = [name for name in self._tables if name.startswith("trial_")]
        for name in (*names, "trials") if ids else ():
            table = self._tables[name]
            connection.execute(sa.delete(table).where(table.c.trial_id.in_(ids)))

    def _put_in_order(
        self, connection: sa.Connection, study_id: int, wanted: Mapping[_Key, int]
    ) -> None:
        """Number a study's trials anew, if the wanted ones are not in their order.

        Others come after them then.
        """
        rows, table = self._rows(connection, study_id), self._tables["trials"]
        places = {
            trial_id: wanted.get(key, len(wanted))
            for trial_id, key in self._keys(connection, rows).items()
        }
        ours = [place for place in places.values() if place < len(wanted)]
        if ours == sorted(ours) and _are_consecutive(rows):
            return
        for number, trial_id in enumerate(sorted(places, key=lambda one: places[one])):
            mine = table.c.trial_id == trial_id
            connection.execute(sa.update(table).where(mine).values(number=number))


def _are_consecutive(rows: _Rows) -> bool:
    return [row.number for row in rows] == list(range(len(rows)))


def _key(trial: FrozenTrial) -> _Key:
    params = {
        (name, float(distribution.to_internal_repr(trial.params[name])))
        for name, distribution in trial.distributions.items()
    }
    return _utc(trial.datetime_start), frozenset(params)


def _parts(trials: Iterable[tuple[int, FrozenTrial]]) -> dict[str, list[dict[str, Any]]]:
    """The rows that belong to trials, by table."""
    parts: dict[str, list[dict[str, Any]]] = {}
    for trial_id, trial in trials:
        for table, rows in _parts_of(trial).items():
            parts.setdefault(table, []).extend({"trial_id": trial_id, **row} for row in rows)
    return parts


def _parts_of(trial: FrozenTrial) -> dict[str, list[dict[str, Any]]]:
    """The rows that belong to one trial, by table, without the trial's id."""
    value = {"objective": 0, "value": trial.value, "value_type": "FINITE"}
    return {
        "trial_values": [] if trial.value is None else [value],
        "trial_params": [
            {
                "param_name": name,
                "param_value": distribution.to_internal_repr(trial.params[name]),
                "distribution_json": distribution_to_json(distribution),
            }
            for name, distribution in trial.distributions.items()
        ],
        "trial_user_attributes": _attribute_rows(trial.user_attrs),
        "trial_system_attributes": _attribute_rows(trial.system_attrs),
        "trial_intermediate_values": [
            {"step": step, "intermediate_value": us, "intermediate_value_type": "FINITE"}
            for step, us in trial.intermediate_values.items()
        ],
    }


def _attribute_rows(attributes: Mapping[str, Any]) -> list[dict[str, Any]]:
    return [{"key": key, "value_json": json.dumps(value)} for key, value in attributes.items()]


def _utc(local: datetime | None) -> datetime | None:
    """Optuna keeps naive UTC in its tables, and naive local times in its trials."""
    return None if local is None else local.astimezone(timezone.utc).replace(tzinfo=None)
