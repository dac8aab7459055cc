"""The selections of a database, read back and with one ``block_m`` for each MoE layer.

A study keeps the choice that is best for its own shape. Whoever reads selections to show or export
them gets them from here, so that the ops of a MoE layer agree.
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
    """Every study's own choice, by where it was measured. An export chooses for MoE layers itself.

    Raises:
        StorageError: The database cannot be used.
    """
    with closing(Store(url, must_exist=True)) as store:
        return list(_by_environment(store).items())


def chosen_in(store: Store) -> dict[tuple[Environment, KernelShape], Selection]:
    """The selection of every study that has one, MoE layers chosen together.

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
    """Selections of a run and of the ops that their MoE layers lack, chosen together.

    Args:
        selections: What the run chose.
        store: The run's database. Earlier runs may have tuned the ops that are lacking.
        environment: Where those ops must have been measured.

    Returns:
        The run's selections in their order, then those of the other ops.

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
