"""Where in a model each module lies, and by which names adapters know it there."""

from __future__ import annotations

from collections.abc import Sequence

from autotune.plan.models.adapters import Place
from autotune.plan.models.config_json import Fields
from autotune.plan.models.modules import EVERY_LAYER, OUTSIDE, Module, Split


def places_of(fields: Fields, modules: Sequence[Module]) -> dict[Module, list[Place]]:
    """Every place in the model that has a module, for each."""
    kinds = None
    if any(module.where != OUTSIDE for module in modules):
        kinds = _kinds(fields)
    places: dict[Module, list[Place]] = {}
    for module in modules:
        if module.where == OUTSIDE:
            places[module] = [_place(fields, module, "", None)]
            continue
        places[module] = [
            _place(fields, module, f"layers.{index}.", index)
            for index, kind in enumerate(kinds or ())
            if module.where in kind
        ]
    return places


def _kinds(fields: Fields) -> list[frozenset[str]]:
    """What each decoder layer is."""
    rules, number = fields.model.architecture.kinds, fields.number("num_hidden_layers")
    values = {**fields.model.values, "num_hidden_layers": number}
    return [
        frozenset({EVERY_LAYER, *(rule(values, index) for rule in rules)})
        for index in range(number)
    ]


def _place(fields: Fields, module: Module, layer: str, index: int | None) -> Place:
    """The module of one decoder layer, by its path in vLLM and by those that adapters use."""
    above, spellings = _above(fields, is_inside=module.split is not Split.LOGITS)
    path = f"{layer}{module.name}"
    parent = path if module.split is Split.EXPERTS else path.rpartition(".")[0]
    below = [f"{parent}.{part}".removeprefix(".") for part in module.parts]
    if not below and not module.parameters:
        below = [path]
    parts = tuple(tuple(f"{start}{part}" for start in spellings) for part in below)
    parameters = tuple(f"{start}{path}.{each}" for start in spellings for each in module.parameters)
    return Place(f"{above}{path}", parts, module.split, parameters, module.is_linear, index)


def _above(fields: Fields, *, is_inside: bool) -> tuple[str, tuple[str, ...]]:
    """What vLLM's paths have before a module's, and what those of checkpoints have there.

    The logits lie outside of what holds the decoder layers.
    """
    wrapper, architecture = fields.model.wrapper, fields.model.architecture
    if wrapper is not None:
        if is_inside:
            return wrapper.above, wrapper.spelled
        return wrapper.above_logits, ("", "language_model.")
    if not is_inside:
        return "", ("",)
    return architecture.above, architecture.spelled or (architecture.above,)
