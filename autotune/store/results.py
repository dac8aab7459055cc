"""All that a database or a recording knows of its shapes: measurements and selections."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field, replace
from datetime import datetime

from autotune.choose.couple import couple
from autotune.choose.finalists import finalists
from autotune.choose.selection import Selection
from autotune.launch.config import KernelConfig
from autotune.launch.environment import Environment
from autotune.launch.shape import KernelShape
from autotune.measure import Measurement, never_stop
from autotune.measure.measurement import Replayed
from autotune.measure.replay import ReplayRunner
from autotune.store import facts
from autotune.store.chosen import chosen_in
from autotune.store.claims import Holder, shares
from autotune.store.store import Store, StudyRecord, study_name


@dataclass(frozen=True, slots=True, kw_only=True)
class ShapeResult:
    """All that is known of one shape in one environment.

    Attributes:
        study: Name of the shape's Optuna study.
        environment: Where the shape was measured.
        shape: The shape.
        measurements: One for each configuration: of a database in the order in which they were
            finished, of a recording in the order of its lines.
        times: When each measurement was started and finished, naive UTC; empty for a recording,
            which does not say.
        default: vLLM's configuration; None where a database has no selection.
        selection: The configuration chosen; None where none works, or none was chosen yet.
        layer: The names of the layers that launch the shape, such as ``o, down``; empty where a
            recording or an older database does not say.
        replayed: The recordings that answered for a run; None where a GPU measured.
        shares: How many of the measurements each run made; empty where that is not known.
    """

    study: str
    environment: Environment
    shape: KernelShape
    measurements: tuple[Measurement, ...] = field(repr=False)
    times: tuple[tuple[datetime, datetime], ...] = field(default=(), repr=False)
    default: KernelConfig | None
    selection: Selection | None = field(repr=False)
    layer: str = ""
    replayed: Replayed | None = None
    shares: Counter[Holder] = field(default_factory=Counter, repr=False)


def of_store(store: Store) -> list[ShapeResult]:
    """Every study of a database, in the order in which the studies were begun.

    The ops of a MoE layer have the one ``block_m`` that is exported. Where no ``block_m`` works for
    all of them, each op has its own choice, and an export would end with an error.

    Raises:
        StorageError: The database cannot be used.
    """
    # A row that was added between tuned ones is launched by the same layers as these.
    names = {
        (environment, shape.without_batch): use.names
        for (environment, shape), use in facts.layers(store).items()
    }
    chosen = chosen_in(store)
    replayed = facts.replayed(store)
    with store.transaction() as connection:
        by_study = shares(connection)
    return [
        replace(
            _of_study(
                store,
                record,
                names.get((record.environment, record.shape.without_batch), ""),
                chosen.get((record.environment, record.shape)),
            ),
            replayed=replayed.get((record.environment, record.shape)),
            shares=by_study.get(record.id, Counter()),
        )
        for record in store.studies()
    ]


def _of_study(
    store: Store, record: StudyRecord, layer: str, selection: Selection | None
) -> ShapeResult:
    finished = store.finished(record)
    return ShapeResult(
        study=record.name,
        environment=record.environment,
        shape=record.shape,
        measurements=tuple(each.measurement for each in finished),
        times=tuple((each.started_at, each.finished_at) for each in finished),
        default=None if selection is None else selection.default,
        selection=selection,
        layer=layer,
    )


def of_replay(runner: ReplayRunner) -> list[ShapeResult]:
    """Every recorded shape, with the selection of a search through all its configurations.

    Raises:
        RecordingError: A shape has no default.
    """
    results = [_of_recorded(runner, shape) for shape in runner.shapes]
    own = [one.selection for one in results if one.selection is not None]
    chosen = {one.shape: one for one in couple(own, strict=False)}
    return [replace(one, selection=chosen.get(one.shape)) for one in results]


def _of_recorded(runner: ReplayRunner, shape: KernelShape) -> ShapeResult:
    space = runner.space(shape, {})
    measured = {config: runner.measure(shape, [config], never_stop) for config in space.configs}
    return ShapeResult(
        study=study_name(runner.environment, shape),
        environment=runner.environment,
        shape=shape,
        measurements=tuple(measured.values()),
        default=space.default,
        selection=_best_of(runner, space.default, measured),
    )


def _best_of(
    runner: ReplayRunner, default: KernelConfig, measured: dict[KernelConfig, Measurement]
) -> Selection | None:
    shape = measured[default].shape
    those = finalists(default, measured, is_moe=shape.op.is_moe)
    if not those:
        return None
    samples_us = runner.compare(shape, those, lambda _: True).samples_us
    outcomes = Counter(one.outcome.value for one in measured.values())
    return Selection.of_samples(shape, default, samples_us, outcomes=outcomes)
