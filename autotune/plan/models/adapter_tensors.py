"""The tensors that an adapter for a model has: their names in its file, and their sizes."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from autotune.plan.models.adapters import Adapter, Place
from autotune.plan.models.config_json import Fields
from autotune.plan.models.lora_layers import places_in, with_lora
from autotune.plan.models.modules import Module, Split
from autotune.plan.models.server import Server

#: What PEFT puts before every path.
_ABOVE = "base_model.model."


@dataclass(frozen=True, slots=True)
class AdaptedLayer:
    """A linear layer with LoRA, as an adapter's file has it.

    Attributes:
        path: The layer's path as checkpoints have it.
        reads: The size of its input.
        writes: The size of its output.
        experts: How many layers lie in it, one behind the other; 1 if it is a single one.
        is_embedding: Whether it is the embedding, whose A is looked up.
    """

    path: str
    reads: int
    writes: int
    experts: int = 1
    is_embedding: bool = False

    def shapes(self, rank: int) -> dict[str, tuple[int, int]]:
        """By name in the adapter's file, the shapes of A and of B."""
        kind = "lora_embedding_{}" if self.is_embedding else "lora_{}.weight"
        start, rows = f"{_ABOVE}{self.path}.", rank * self.experts
        return {
            f"{start}{kind.format('A')}": (rows, self.reads),
            f"{start}{kind.format('B')}": (self.writes, rows),
        }


def adapted_layers(
    config: Mapping[str, Any],
    server: Server,
    targets: Collection[str] | Sequence[Adapter] | Adapter | None = None,
) -> tuple[AdaptedLayer, ...]:
    """Every linear layer that an adapter of a model may have, by autotune's table.

    Args:
        config: A model's config, as ``read_config`` gives it.
        server: The flags of the server that runs the model.
        targets: As for ``lora_layers``.

    Raises:
        UnknownModel: The table does not have the model.
        InputError: As ``lora_layers``.
    """
    fields = Fields.of(config)
    return layers_among(fields, places_in(fields, server), server, targets)


def layers_among(
    fields: Fields,
    places: Mapping[Module, Sequence[Place]],
    server: Server,
    targets: Collection[str] | Sequence[Adapter] | Adapter | None = None,
) -> tuple[AdaptedLayer, ...]:
    """The same, of places that are known.

    Args:
        fields: The model's config.
        places: Every module of the model, with its places.
        server: As for ``adapted_layers``.
        targets: As for ``lora_layers``.
    """
    found = with_lora(fields, places, server, targets)
    return tuple(
        layer
        for module, those in found.items()
        if module.is_launched(server.release)
        for place in those
        for layer in _layers(fields, module, place)
    )


def _layers(fields: Fields, module: Module, place: Place) -> Iterator[AdaptedLayer]:
    writes = [fields.size(size) for size in module.writes]
    if module.split is Split.EXPERTS:
        yield from _experts(fields, module, place, writes)
        return
    if module.split is Split.EMBEDDING:
        words = fields.number("vocab_size")
        yield AdaptedLayer(place.parts[0][0], words, sum(writes), is_embedding=True)
        return
    reads = fields.size(module.reads)
    if len(place.parts) != len(writes):  # an adapter has all slices in one
        writes = [sum(writes)]
    for names, size in zip(place.parts, writes, strict=True):
        yield AdaptedLayer(names[0], reads, size)


def _experts(
    fields: Fields, module: Module, place: Place, writes: list[int]
) -> Iterator[AdaptedLayer]:
    hidden, number = fields.size(module.reads), fields.size(module.number)
    middle = sum(writes) // 2 if module.is_gated else sum(writes)
    if not place.parts:  # all experts in one: gate and up, then down
        above = place.parameters[0].rpartition(".")[0]
        yield AdaptedLayer(f"{above}.base_layer", hidden, sum(writes), number)
        yield AdaptedLayer(above, middle, hidden, number)
        return
    for expert in range(number):
        *first, last = (_of_expert(names[0], module, expert) for names in place.parts)
        for path in first:
            yield AdaptedLayer(path, hidden, middle)
        yield AdaptedLayer(last, middle, hidden)


def _of_expert(path: str, module: Module, expert: int) -> str:
    """The path of an expert's layer, from that of the first expert's."""
    above, _, below = path.rpartition(f"{module.name}.0.")
    return f"{above}{module.name}.{expert}.{below}"
