"""What is known of shapes, of a database or of a recording: every trial, and what was chosen."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from datetime import datetime

from autotune.choose.couple import couple
from autotune.choose.finalists import finalists
from autotune.choose.selection import Selection, select
from autotune.errors import ExportError
from autotune.launch.config import KernelConfig
from autotune.launch.environment import Environment
from autotune.launch.moe_layer import by_layer
from autotune.launch.shape import KernelShape
from autotune.measure import Measurement, never_stop
from autotune.measure.replay import ReplayRunner
from autotune.store.store import study_name
from autotune.store import Store, StudyRecord, facts


@dataclass(frozen=True, slots=True, kw_only=True)
class ShapeResult:
    """All that is known of one shape in one environment.

    Attributes:
        study: Name of its Optuna study.
        environment: Where it was measured.
        shape: The shape.
        measurements: One a configuration, in the order in which they were finished; of a recording
            in that of its lines.
        times: When each of them was started and finished, naive UTC; empty for a recording, which
            does not say.
        default: vLLM's configuration; None where a search has not come to its choice yet.
        selection: The configuration chosen; None where none works, or none was chosen yet.
        layer: The names of its layers, such as ``o, down``; empty where a recording or an older
            database does not say.
    """

    study: str
    environment: Environment
    shape: KernelShape
    measurements: tuple[Measurement, ...] = field(repr=False)
    times: tuple[tuple[datetime, datetime], ...] = field(default=(), repr=False)
    default: KernelConfig | None
    selection: Selection | None = field(repr=False)
    layer: str = ""


def of_store(store: Store) -> list[ShapeResult]:
    """Every study of a database, in the order in which they were begun.

    The ops of a MoE layer have the one ``block_m`` that is exported. Where none works for all of
    them each has its own choice, and an export ends with an error.

    Raises:
        StorageError: The database cannot be used.
    """
    # Rows that were added between others have the layers of those.
    names = {
        (environment, shape.without_batch): use.names
        for (environment, shape), use in facts.layers(store).items()
    }
    return _coupled(
        _of_study(store, record, names.get((record.environment, record.shape.without_batch), ""))
        for record in store.studies()
    )


def _of_study(store: Store, record: StudyRecord, layer: str) -> ShapeResult:
    selection = store.selection(record)
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
    """Every recorded shape, chosen for as after a search of all that was recorded.

    Raises:
        RecordingError: A shape has no default.
    """
    return _coupled(_of_recorded(runner, shape) for shape in runner.shapes)


def _of_recorded(runner: ReplayRunner, shape: KernelShape) -> ShapeResult:
    space = runner.space(shape, {})
    measured = {config: runner.measure(shape, [config], never_stop) for config in space.configs}
    return ShapeResult(
        study=study_name(runner, shape),
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
    config, ratio = select(default, samples_us)
    outcomes = [one.outcome.value for one in measured.values()]
    return Selection(
        shape=shape,
        config=config,
        default=default,
        samples_us=samples_us,
        ratio=ratio,
        trials=len(measured),
        outcomes={name: outcomes.count(name) for name in dict.fromkeys(outcomes)},
    )


def _coupled(results: Iterable[ShapeResult]) -> list[ShapeResult]:
    """The same with one ``block_m`` for the ops of each MoE layer of an environment."""
    results = list(results)
    chosen: dict[tuple[Environment, KernelShape], Selection] = {}
    for environment in dict.fromkeys(result.environment for result in results):
        own = [
            result.selection
            for result in results
            if result.selection is not None and result.environment == environment
        ]
        for those in by_layer(own, lambda one: one.shape).values():
            chosen |= {(environment, one.shape): one for one in _couple(those)}
    return [
        replace(result, selection=chosen.get((result.environment, result.shape), result.selection))
        for result in results
    ]


def _couple(selections: list[Selection]) -> list[Selection]:
    try:
        return couple(selections)
    except ExportError:  # what was measured can still be looked at
        return selections
