"""Kinds of shapes, which differ in more than their number of tokens: their order and names."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING

from autotune.launch.shape import KernelShape
from autotune.launch.sizes import sizes_text

if TYPE_CHECKING:
    from autotune.store.results import ShapeResult


def in_order(results: Iterable[ShapeResult]) -> list[ShapeResult]:
    """The results of each kind together, in the order of first appearance, by rising tokens."""
    kinds: dict[KernelShape, list[ShapeResult]] = {}
    for one in results:
        kinds.setdefault(one.shape.without_batch, []).append(one)
    by_tokens = (sorted(those, key=lambda one: one.shape.num_tokens) for those in kinds.values())
    return [one for those in by_tokens for one in those]


def kind_names(layers: Mapping[KernelShape, str]) -> dict[KernelShape, str]:
    """The shortest unique name of each kind: the op and its layers, then sizes where needed.

    Args:
        layers: The names of the layers by shape without its batch; empty where not known.
    """
    names = {kind: _candidates(kind, layer) for kind, layer in layers.items()}
    found = {}
    for kind, candidates in names.items():
        others = [those for other, those in names.items() if other != kind]
        unique = (each for each in candidates if not any(each in those for those in others))
        found[kind] = next(unique, candidates[-1])
    return found


def _candidates(kind: KernelShape, layer: str) -> list[str]:
    """Names of a kind, from the shortest to the full label, which no other kind has."""
    op = kind.op.value.removeprefix("fused_moe_lora_")
    sizes, label = sizes_text(kind), kind.label.removeprefix("m=1,")
    longer = [f"{op} {layer} {sizes}"] if layer else []
    return [f"{op} {layer or sizes}", *longer, f"{op} {layer} {label}".replace("  ", " ")]
