"""The selections of a database, with one ``block_m`` for the ops of each MoE layer."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from autotune.choose.couple import couple
from autotune.choose.selection import Selection
from autotune.launch.environment import Environment
from autotune.launch.moe_layer import MoeLayer, by_layer, missing_ops
from autotune.store import Store


def to_export(tuned: Sequence[Tuned], url: str, environment: Environment) -> list[Selection]:
    """What a run's export writes: its selections, and those of ops that its MoE layers lack.

    Args:
        tuned: What came of the run.
        url: The run's database, where earlier runs may have left those ops.
        environment: Where they must have been measured.

    Raises:
        StorageError: The database cannot be used.
    """
    own = [result.selection for result in tuned if result.selection]
    store = Store(url)
    try:
        return couple([*own, *_layer_mates(own, store, environment)])
    finally:
        store.close()


def _coupled(tuned: Sequence[Tuned], store: Store, environment: Environment) -> Sequence[Tuned]:
    """What came of the shapes, with one ``block_m`` for each MoE layer."""
    own = [result.selection for result in tuned if result.selection]
    coupled = couple([*own, *_layer_mates(own, store, environment)])
    by_shape = {one.shape: one for one in coupled}
    return [replace(result, selection=by_shape.get(result.shape)) for result in tuned]


def _layer_mates(
    selections: Sequence[Selection], store: Store, environment: Environment
) -> list[Selection]:
    """The stored selections of the ops that the selections' MoE layers lack."""
    layers = by_layer(selections, lambda one: one.shape)
    lacking = {layer: missing_ops(one.shape for one in those) for layer, those in layers.items()}
    if not any(lacking.values()):
        return []
    return [
        one
        for measured_in, one in store.selections()
        if measured_in == environment
        and one.shape.op.is_moe
        and one.shape.op in lacking.get(MoeLayer.of(one.shape), ())
    ]


def stored_selections(url: str) -> list[tuple[Environment, list[Selection]]]:
    """The selections in a database, by the environment in which they were measured.

    Raises:
        StorageError: The database cannot be used.
    """
    store = Store(url, must_exist=True)
    try:
        grouped: dict[Environment, list[Selection]] = {}
        for environment, selection in store.selections():
            grouped.setdefault(environment, []).append(selection)
    finally:
        store.close()
    return list(grouped.items())
