"""Gathers a report's contents from a database or from recordings."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from contextlib import closing
from pathlib import Path
from types import MappingProxyType

from autotune.choose.losses import BetweenRows
from autotune.errors import StorageError
from autotune.launch.environment import Environment, by_environment
from autotune.launch.release import is_timed_as_pair
from autotune.measure.measurement import Ceilings
from autotune.measure.roofline import bytes_moved, floor_us, flops
from autotune.measure.runners import replay_runners
from autotune.report.kinds import in_order, kind_names
from autotune.report.records import DeviceReport, Report, ShapeReport
from autotune.search.importance import importances
from autotune.store import Load, Store, facts, shown, utc_now
from autotune.store.load import loads_of
from autotune.store.results import ShapeResult, of_replay, of_store


def of_database(url: str) -> Report:
    """The report of a database, which a run may be writing at the same time.

    Args:
        url: The database.

    Raises:
        StorageError: The database cannot be used, or holds no study.
    """
    with closing(Store(url, read_only=True)) as store:
        results = of_store(store)
        ceilings = facts.ceilings(store)
        between = facts.between(store)
        busy = loads_of(store)
    if not results:
        raise StorageError(f"{shown(url)} holds no study; tune one with autotune run")
    return Report(
        source=shown(url),
        is_recording=False,
        devices=tuple(
            _device(
                environment, those, ceilings.get(environment), between.get(environment, ()), busy
            )
            for environment, those in by_environment(results, lambda one: one.environment).items()
        ),
        written_at=utc_now(),
    )


def of_recordings(paths: Sequence[Path]) -> Report:
    """The report of recordings: the fastest recorded configuration of each shape, and the default.

    Args:
        paths: Recordings of one or several environments.

    Raises:
        RecordingError: A recording cannot be read, or two of them hold the same shape.
    """
    return Report(
        source=", ".join(map(str, paths)),
        is_recording=True,
        devices=tuple(
            _device(runner.environment, of_replay(runner), runner.ceilings())
            for runner in replay_runners(paths)
        ),
        written_at=utc_now(),
    )


def _device(
    environment: Environment,
    results: Iterable[ShapeResult],
    ceilings: Ceilings | None,
    between: Sequence[BetweenRows] = (),
    busy: Mapping[int, Load] = MappingProxyType({}),
) -> DeviceReport:
    results = in_order(results)
    runs = dict.fromkeys(by for one in results for by in one.shares)
    kinds = kind_names({one.shape.without_batch: one.layer for one in results})
    return DeviceReport(
        environment=environment,
        ceilings=ceilings,
        shapes=tuple(_shape(one, kinds[one.shape.without_batch], ceilings) for one in results),
        between=tuple(between),
        loads={
            (by.host, by.process): busy[by.run]
            for by in runs
            if by.run in busy and busy[by.run].shares
        },
    )


def _shape(result: ShapeResult, kind: str, ceilings: Ceilings | None) -> ShapeReport:
    shape = result.shape
    pair = is_timed_as_pair(shape, result.environment)
    return ShapeReport(
        result=result,
        kind=kind,
        importances=importances(result.measurements),
        bytes_moved=bytes_moved(shape, pair=pair),
        flops=flops(shape, pair=pair),
        floor_us=None if ceilings is None else floor_us(shape, ceilings, pair=pair),
        kernel="vLLM's one kernel for shrink and expand" if pair else "",
    )
