"""Facts that a run knows and its measurements do not say, kept for reports.

A database of an earlier autotune has no facts; readers then get empty results.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from typing import Annotated, Any, TypeVar

import sqlalchemy as sa
from pydantic import Field

from autotune.choose.losses import BetweenRows
from autotune.launch.environment import Environment, by_environment
from autotune.launch.shape import KernelShape
from autotune.measure.figures import CeilingsTable, ReplayedTable
from autotune.measure.measurement import Ceilings, Replayed
from autotune.store import schema
from autotune.store.faults import undamaged
from autotune.store.patience import outlasted
from autotune.store.store import Store
from autotune.untrusted import Count, Untrusted, parse_json, read_json

_LAYER, _CEILINGS, _BETWEEN, _REPLAYED = "layer", "ceilings", "between", "replayed"


@dataclass(frozen=True, slots=True, kw_only=True)
class LayerUse:
    """Where a model launches a shape.

    Attributes:
        names: The layers' names, such as ``o, down``.
        runs: How often a forward pass launches the shape; 0 where no model says so.
    """

    names: str
    runs: int


#: Infinite where a row's configuration does not run.
_Loss = Annotated[float, Field(ge=0)]


class _Use(Untrusted):
    names: str
    runs: Count


class _Losses(Untrusted):
    before: _Loss
    after: _Loss


def keep_layers(
    store: Store, environment: Environment, uses: Mapping[KernelShape, LayerUse]
) -> None:
    """Write down where a model launches shapes."""
    _keep(store, _LAYER, environment, {shape: asdict(use) for shape, use in uses.items()})


def layers(store: Store) -> dict[tuple[Environment, KernelShape], LayerUse]:
    """Where shapes are launched, from the latest run that tuned each of them."""
    return {
        (environment, shape): LayerUse(names=fact.names, runs=fact.runs)
        for (environment, shape), fact in _known(store, _LAYER, _Use).items()
        if shape is not None
    }


def keep_replayed(
    store: Store, environment: Environment, shapes: Iterable[KernelShape], replayed: Replayed
) -> None:
    """Write down that recordings answered for shapes: their times are not those of measuring."""
    _keep(store, _REPLAYED, environment, dict.fromkeys(shapes, replayed.as_dict()))


def replayed(store: Store) -> dict[tuple[Environment, KernelShape], Replayed]:
    """The recordings that answered for shapes, in the latest run that replayed each of them."""
    return {
        (environment, shape): fact.replayed
        for (environment, shape), fact in _known(store, _REPLAYED, ReplayedTable).items()
        if shape is not None
    }


def keep_ceilings(store: Store, environment: Environment, ceilings: Ceilings) -> None:
    """Write down the measured limits of a device."""
    _keep(store, _CEILINGS, environment, {None: asdict(ceilings)})


def ceilings(store: Store) -> dict[Environment, Ceilings]:
    """The measured limits of every device in the database."""
    return {
        environment: fact.ceilings
        for (environment, _), fact in _known(store, _CEILINGS, CeilingsTable).items()
    }


def keep_between(store: Store, environment: Environment, losses: Iterable[BetweenRows]) -> None:
    """Write down the losses at batch sizes between rows."""
    _keep(
        store,
        _BETWEEN,
        environment,
        {each.shape: {"before": each.before, "after": each.after} for each in losses},
    )


def between(store: Store) -> dict[Environment, list[BetweenRows]]:
    """The losses at batch sizes between rows, from the latest run that timed each of them."""
    found = [
        (environment, BetweenRows(shape=shape, before=fact.before, after=fact.after))
        for (environment, shape), fact in _known(store, _BETWEEN, _Losses).items()
        if shape is not None
    ]
    groups = by_environment(found, lambda pair: pair[0])
    return {environment: [loss for _, loss in pairs] for environment, pairs in groups.items()}


@outlasted
def _keep(
    store: Store,
    kind: str,
    environment: Environment,
    facts: Mapping[KernelShape | None, Mapping[str, Any]],
) -> None:
    """Keep JSON-ready values, replacing earlier facts of the same kind about the same shapes.

    A fact about the environment as a whole has None in place of a shape.
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


_Fact = TypeVar("_Fact", bound=Untrusted)


@outlasted
def _known(
    store: Store, kind: str, model: type[_Fact]
) -> dict[tuple[Environment, KernelShape | None], _Fact]:
    """All facts of a kind, in the order in which they were kept."""
    table = schema.facts
    query = sa.select(table).where(table.c.kind == kind).order_by(table.c.id)
    with store.transaction() as connection:
        rows = connection.execute(query).all()
    found = {}
    for row in rows:
        with undamaged(store.url, f"fact {row.id}"):
            shape = parse_json(row.shape)
            environment = Environment.from_mapping(parse_json(row.environment))
            about = None if shape is None else KernelShape.from_mapping(shape)
            found[environment, about] = read_json(model, row.fact)
    return found
