"""How busy a run's GPUs, compilers and writer are, in the database."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import TYPE_CHECKING, Any

import sqlalchemy as sa

from autotune.store import schema

if TYPE_CHECKING:
    from autotune.store.store import Store


@dataclass(frozen=True, slots=True, kw_only=True)
class DeviceLoad:
    """One GPU of a run.

    Attributes:
        device: The GPU, as its runner has it.
        busy_s: Seconds in which it has measured.
        is_lost: Whether it was lost.
    """

    device: str
    busy_s: float
    is_lost: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Load:
    """How busy a run has been.

    Attributes:
        devices: Its GPUs, in the order in which they were given.
        compilers: Processes that compile for it.
        compiled_s: Seconds of all of them together in which they have compiled.
        writing_s: Seconds in which the database was written.
        elapsed_s: Seconds since the run began, or those that it took; 0 where nobody has asked.
    """

    devices: Sequence[DeviceLoad] = ()
    compilers: float = 0.0
    compiled_s: float = 0.0
    writing_s: float = 0.0
    elapsed_s: float = 0.0

    @property
    def shares(self) -> dict[str, float]:
        """The part of the time in which each GPU, the compilers and the writer were busy.

        Empty where it is not known, or nobody measures: a replay that is alone has no GPU to tell
        of.
        """
        if not self.devices or self.elapsed_s <= 0:
            return {}
        found = {one.device: one.busy_s for one in self.devices}
        if self.compilers:
            found["compilers"] = self.compiled_s / self.compilers
        found["writer"] = self.writing_s
        return {name: min(1.0, busy_s / self.elapsed_s) for name, busy_s in found.items()}

    def __str__(self) -> str:
        """Such as ``GPU 0 (5f3c1a2b) 71 %, GPU 1 (77e0d2c4) 12 % (lost), compilers 96 %``."""
        lost = {one.device for one in self.devices if one.is_lost}
        return ", ".join(
            f"{name} {share:.0%}".replace("%", " %") + (" (lost)" if name in lost else "")
            for name, share in self.shares.items()
        )


def begin_load(connection: sa.Connection, run: int, load: Load) -> None:
    """Write down the GPUs of a run that begins."""
    rows = [
        {"run_id": run, "number": number, "device": one.device, "busy_s": one.busy_s}
        for number, one in enumerate(load.devices)
    ]
    if rows:
        connection.execute(sa.insert(schema.devices), rows)


def keep_load(connection: sa.Connection, run: int, load: Load) -> None:
    """Write down how busy a run has been until now."""
    runs, devices = schema.runs, schema.devices
    values = {name: getattr(load, name) for name in ("compilers", "compiled_s", "writing_s")}
    connection.execute(sa.update(runs).where(runs.c.id == run).values(values))
    for number, one in enumerate(load.devices):
        mine = (devices.c.run_id == run) & (devices.c.number == number)
        changed: dict[str, Any] = {"busy_s": one.busy_s}
        if one.is_lost:
            changed["lost_at"] = sa.func.coalesce(devices.c.lost_at, schema.clock())
        connection.execute(sa.update(devices).where(mine).values(changed))


def loads(connection: sa.Connection) -> dict[int, Load]:
    """How busy each run was until it ended, or wrote last, by its number in the database."""
    runs, devices = schema.runs, schema.devices
    of_run: dict[int, list[DeviceLoad]] = {}
    order = sa.select(devices).order_by(devices.c.run_id, devices.c.number)
    for row in connection.execute(order):
        one = DeviceLoad(device=row.device, busy_s=row.busy_s, is_lost=row.lost_at is not None)
        of_run.setdefault(row.run_id, []).append(one)
    return {
        row.id: Load(
            devices=tuple(of_run.get(row.id, ())),
            compilers=row.compilers or 0.0,
            compiled_s=row.compiled_s or 0.0,
            writing_s=row.writing_s or 0.0,
            elapsed_s=_elapsed_s(row.started_at, row.ended_at or row.seen_at),
        )
        for row in connection.execute(sa.select(runs))
    }


def loads_of(store: Store) -> dict[int, Load]:
    """``loads`` of a database.

    Raises:
        StorageError: The database cannot be read.
    """
    with store.transaction() as connection:
        return loads(connection)


def _elapsed_s(started: datetime, ended: datetime) -> float:
    return (ended - started).total_seconds()
