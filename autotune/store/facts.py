"""What a run knew beside its measurements, kept for those who look at them later.

A database of an earlier autotune has none of it, and is read as one that does not say.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from typing import Any

import sqlalchemy as sa

from autotune.choose.selection import BetweenRows
from autotune.launch.environment import Environment, by_environment
from autotune.launch.shape import KernelShape
from autotune.measure.measurement import Ceilings
from autotune.store import schema
from autotune.store.store import Store

_LAYER, _CEILINGS, _BETWEEN = "layer", "ceilings", "between"


@dataclass(frozen=True, slots=True, kw_only=True)
class LayerUse:
    """Where a model launches a shape.

    Attributes:
        names: Of its layers, such as ``o, down``.
        runs: How often a forward pass launches it; 0 where no model says so.
    """

    names: str
    runs: int


def keep_layers(
    store: Store, environment: Environment, uses: Mapping[KernelShape, LayerUse]
) -> None:
    """Keep where a model launches shapes."""
    _keep(store, _LAYER, environment, {shape: asdict(use) for shape, use in uses.items()})


def layers(store: Store) -> dict[tuple[Environment, KernelShape], LayerUse]:
    """Where shapes are launched, as the latest run that tuned them knew."""
    return {
        (environment, shape): LayerUse(names=fact["names"], runs=fact["runs"])
        for (environment, shape), fact in _known(store, _LAYER).items()
        if shape is not None
    }


def keep_ceilings(store: Store, environment: Environment, ceilings: Ceilings) -> None:
    """Keep what a device was measured to reach."""
    _keep(store, _CEILINGS, environment, {None: asdict(ceilings)})


def ceilings(store: Store) -> dict[Environment, Ceilings]:
    """What devices were measured to reach."""
    return {
        environment: Ceilings(fact["copy_bytes_per_s"], fact["matmul_flops_per_s"])
        for (environment, _), fact in _known(store, _CEILINGS).items()
    }


def keep_between(store: Store, environment: Environment, losses: Iterable[BetweenRows]) -> None:
    """Keep what was lost at batch sizes between rows."""
    _keep(
        store,
        _BETWEEN,
        environment,
        {each.shape: {"before": each.before, "after": each.after} for each in losses},
    )


def between(store: Store) -> dict[Environment, list[BetweenRows]]:
    """What was lost at batch sizes between rows, as the latest run that looked there saw it."""
    found = [
        (environment, BetweenRows(shape=shape, before=fact["before"], after=fact["after"]))
        for (environment, shape), fact in _known(store, _BETWEEN).items()
        if shape is not None
    ]
    groups = by_environment(found, lambda pair: pair[0])
    return {environment: [loss for _, loss in pairs] for environment, pairs in groups.items()}


def _keep(
    store: Store,
    kind: str,
    environment: Environment,
    facts: Mapping[KernelShape | None, Mapping[str, Any]],
) -> None:
    """Keep JSON-ready values by shape, in place of what was known of the same before.

    None in place of a shape is for what is true of no shape in particular.
    """
    if not facts:
        return
    table, where = schema.facts, json.dumps(environment.as_dict())
    rows = [
        {
            "kind": kind,
            "environment": where,
            "shape": json.dumps(None if shape is None else shape.as_dict()),
            "fact": json.dumps(fact),
        }
        for shape, fact in facts.items()
    ]
    replaced = sa.delete(table).where(
        table.c.kind == kind,
        table.c.environment == where,
        table.c.shape.in_([row["shape"] for row in rows]),
    )
    with store.transaction() as connection:
        connection.execute(replaced)
        connection.execute(sa.insert(table), rows)


def _known(store: Store, kind: str) -> dict[tuple[Environment, KernelShape | None], dict[str, Any]]:
    """Everything known of a kind, in the order in which it was kept."""
    table = schema.facts
    query = sa.select(table).where(table.c.kind == kind).order_by(table.c.id)
    with store.transaction() as connection:
        rows = connection.execute(query).all()
    return {
        (Environment.from_mapping(json.loads(row.environment)), _shape(row.shape)): (
            json.loads(row.fact)
        )
        for row in rows
    }


def _shape(text: str) -> KernelShape | None:
    table = json.loads(text)
    return None if table is None else KernelShape.from_mapping(table)
