"""The selections of a database, read back and with one ``block_m`` for each MoE layer.

The database keeps the choice that is best for each shape alone. Reports and exports read selections
through this module, so that the ops of a MoE layer agree.
"""

from __future__ import annotations

from collections.abc import Iterable
from contextlib import closing

from autotune.choose.couple import couple
from autotune.choose.selection import Selection
from autotune.launch.environment import Environment, by_environment
from autotune.launch.moe_layer import MoeLayer, by_layer, missing_ops
from autotune.launch.shape import KernelShape
from autotune.store.store import Store


def stored_selections(url: str) -> list[tuple[Environment, list[Selection]]]:
    """Every shape's own selection, by environment. MoE layers are not yet chosen together.

    Raises:
        StorageError: The database cannot be used.
    """
    with closing(Store(url, read_only=True)) as store:
        return list(_by_environment(store).items())


def chosen_in(store: Store) -> dict[tuple[Environment, KernelShape], Selection]:
    """Every selection, with one ``block_m`` per MoE layer.

    Where no ``block_m`` works for all of a layer's ops, each keeps its own choice.

    Raises:
        StorageError: The database cannot be used.
    """
    return {
        (environment, one.shape): one
        for environment, selections in _by_environment(store).items()
        for one in couple(selections, strict=False)
    }


def chosen_together(
    selections: Iterable[Selection], store: Store, environment: Environment
) -> list[Selection]:
    """A run's selections with one ``block_m`` per MoE layer.

    A layer's ops that the run did not tune are taken from the database.

    Args:
        selections: What the run chose.
        store: The run's database, in which earlier runs may have kept the missing ops.
        environment: Where the missing ops must have been measured.

    Returns:
        The run's selections in their order, then the selections of the missing ops.

    Raises:
        ExportError: No ``block_m`` works for all ops of a layer.
        StorageError: The database cannot be used.
    """
    own = list(selections)
    layers = by_layer(own, lambda one: one.shape)
    lacking = {layer: missing_ops(one.shape for one in those) for layer, those in layers.items()}
    if not any(lacking.values()):
        return couple(own)
    mates = [
        one
        for one in _by_environment(store).get(environment, ())
        if one.shape.op.is_moe and one.shape.op in lacking.get(MoeLayer.of(one.shape), ())
    ]
    return couple([*own, *mates])


def _by_environment(store: Store) -> dict[Environment, list[Selection]]:
    pairs = by_environment(store.selections(), lambda pair: pair[0])
    return {environment: [one for _, one in those] for environment, those in pairs.items()}
