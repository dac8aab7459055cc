"""What a run knew beside its measurements, kept for those who look at them later.

A database of an earlier autotune has none of it, and is read as one that does not say.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass

from autotune.environment import Environment
from autotune.measure.protocol import Ceilings
from autotune.refine import BetweenRows
from autotune.shapes import KernelShape
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
    store.keep_facts(_LAYER, environment, {shape: asdict(use) for shape, use in uses.items()})


def layers(store: Store) -> dict[tuple[Environment, KernelShape], LayerUse]:
    """Where shapes are launched, as the latest run that tuned them knew."""
    return {
        (environment, shape): LayerUse(names=fact["names"], runs=fact["runs"])
        for (environment, shape), fact in store.facts(_LAYER).items()
        if shape is not None
    }


def keep_ceilings(store: Store, environment: Environment, ceilings: Ceilings) -> None:
    """Keep what a device was measured to reach."""
    store.keep_facts(_CEILINGS, environment, {None: asdict(ceilings)})


def ceilings(store: Store) -> dict[Environment, Ceilings]:
    """What devices were measured to reach."""
    return {
        environment: Ceilings(fact["copy_bytes_per_s"], fact["matmul_flops_per_s"])
        for (environment, _), fact in store.facts(_CEILINGS).items()
    }


def keep_between(store: Store, environment: Environment, losses: Iterable[BetweenRows]) -> None:
    """Keep what was lost at batch sizes between rows."""
    store.keep_facts(
        _BETWEEN,
        environment,
        {each.shape: {"before": each.before, "after": each.after} for each in losses},
    )


def between(store: Store) -> dict[Environment, list[BetweenRows]]:
    """What was lost at batch sizes between rows, as the latest run that looked there saw it."""
    found: dict[Environment, list[BetweenRows]] = {}
    for (environment, shape), fact in store.facts(_BETWEEN).items():
        if shape is not None:
            loss = BetweenRows(shape=shape, before=fact["before"], after=fact["after"])
            found.setdefault(environment, []).append(loss)
    return found
