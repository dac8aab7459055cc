"""From a model's config to its architecture and the part that describes its language model."""

from __future__ import annotations

import difflib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from autotune.errors import InputError, shown
from autotune.plan.models.modules import Architecture, Wrapper
from autotune.plan.models.table import ARCHITECTURES
from autotune.plan.models.table.class_defaults import CLASS_DEFAULTS, USUAL_TYPE

BY_HAND = (
    "give its layers by hand instead, as [[shapes]] tables with op and hidden_size or slice_sizes "
    "in the study file"
)

#: What to do about a model that the table does not have.
ANOTHER_WAY = (
    "have vLLM say what its layers are, with autotune beside it and --ask-vllm; or give what its "
    "server asks for, as --trace FILE, or its layers by hand, as [[shapes]] tables in a study file"
)


class UnknownModel(InputError):
    """A model that the table of architectures does not describe; vLLM may know it."""


@dataclass(frozen=True, slots=True)
class Model:
    """A config that its architecture describes.

    Attributes:
        name: The name of its architecture.
        architecture: The language model.
        values: The fields of the language model's config; those that the config leaves out have
            the architecture's defaults.
        formulas: From which other fields those follow that are left out.
        written: What the config calls fields that have several names, by each of these.
        wrapper: What the language model is in; None where it is the whole model.
    """

    name: str
    architecture: Architecture
    values: Mapping[str, Any]
    formulas: Mapping[str, str] = field(default_factory=dict)
    wrapper: Wrapper | None = None
    written: Mapping[str, str] = field(default_factory=dict)


def language_model_of(config: Mapping[str, Any]) -> Model:
    """Find the architecture of a config, and the part that describes its language model.

    Raises:
        UnknownModel: The architecture is not in the table, or its entry cannot describe the config.
        InputError: The config has two values of one field, or one of the wrong type.
    """
    names = config.get("architectures")
    name = names[0] if isinstance(names, list) and names else None
    if not isinstance(name, str) or name not in ARCHITECTURES:
        raise UnknownModel(
            f"unknown model: looked for architectures in its config: got {shown(names)}; "
            f"known are {_nearest(name)} ({len(ARCHITECTURES)} in docs/models.md); {ANOTHER_WAY}"
        )
    entry = ARCHITECTURES[name]
    wrapper = entry if isinstance(entry, Wrapper) else None
    values = _values(config, wrapper)
    architecture = _in(name, entry, values) if isinstance(entry, Wrapper) else entry
    _fill_in(name, wrapper, values)
    defaults = {**architecture.defaults, **(wrapper.defaults if wrapper else {})}
    values = {key: value for key, value in values.items() if value is not None}
    written: dict[str, str] = {}
    for alike in _ALSO_CALLED:
        written |= _call_alike(alike, values)
    _take_overrides(name, architecture, values)
    _check_kind(name, architecture, values, written)
    _check_alike(name, architecture, values)
    numbers = {key: value for key, value in defaults.items() if isinstance(value, int)}
    formulas = {key: value for key, value in defaults.items() if isinstance(value, str)}
    values |= {key: rule(values) for key, rule in architecture.derived.items()}
    return Model(name, architecture, {**numbers, **values}, formulas, wrapper, written)


def _nearest(name: object) -> str:
    """A few names of the table: those that look like one, or else those of a well-known family."""
    near = difflib.get_close_matches(str(name)[:100], ARCHITECTURES, n=4, cutoff=0.75)
    return ", ".join(near or [each for each in ARCHITECTURES if each.startswith("Qwen3")][:4])


def _values(config: Mapping[str, Any], wrapper: Wrapper | None) -> dict[str, Any]:
    """The fields of the language model, wherever they stand; nested ones by dotted names."""
    found: Any = config
    for path in wrapper.at if wrapper else ("text_config",):
        inner: Any = config
        for step in path.split("."):
            inner = inner.get(step) if isinstance(inner, dict) else None
            if inner is not None and not isinstance(inner, dict):
                raise InputError(f"the config's {path} must be an object: got {shown(inner)}")
        if inner is not None:
            found = inner
            break
    values = dict(found)
    for key, value in found.items():
        if isinstance(value, dict) and isinstance(key, str):
            values |= {f"{key}.{each}": inner for each, inner in value.items()}
    return values


def _fill_in(name: str, wrapper: Wrapper | None, values: dict[str, Any]) -> None:
    """Give fields that are absent, and not null, the default of the config's class."""
    usual = next(iter(wrapper.texts)) if wrapper else USUAL_TYPE.get(name, "")
    kind = values.get("model_type") or usual
    for key, value in CLASS_DEFAULTS.get(kind if isinstance(kind, str) else "", {}).items():
        values.setdefault(key, value)


def _in(name: str, wrapper: Wrapper, values: Mapping[str, Any]) -> Architecture:
    """The language model in a wrapper.

    Raises:
        InputError: It is not one that the wrapper's entry knows.
    """
    kind = values.get("model_type")
    if kind is None:
        return next(iter(wrapper.texts.values()))
    if not isinstance(kind, str) or kind not in wrapper.texts:
        known = [each for each in wrapper.texts if each]
        raise UnknownModel(
            f"unknown language model in {name}: got {shown(kind)} for model_type in its "
            f"text_config; known is {' or '.join(known)}; {ANOTHER_WAY}"
        )
    _check_inner(name, wrapper.texts[kind], values.get("architectures"))
    return wrapper.texts[kind]


def _check_inner(name: str, architecture: Architecture, names: object) -> None:
    """Refuse an inner architecture that is another one than the inner model type."""
    inner = names[0] if isinstance(names, list) and names else None
    other = ARCHITECTURES.get(inner) if isinstance(inner, str) else None
    if isinstance(other, Architecture) and other != architecture:
        raise UnknownModel(
            f"the language model in {name} is {shown(inner)} by its architectures, and another one "
            f"by its model_type; {ANOTHER_WAY}"
        )


# --------------------------------------------------------------------------- other names

#: Names of one and the same field: a release of ``transformers`` writes one, another release the
#: other, such as ``num_experts`` of Qwen3-MoE in 4 and ``num_local_experts`` in 5.
_ALSO_CALLED = (
    ("num_experts", "num_local_experts", "n_routed_experts"),
    ("num_experts_per_tok", "experts_per_token"),
)


def _call_alike(names: Sequence[str], values: dict[str, Any]) -> dict[str, str]:
    """Give a field's value to all of its names, and say what the config calls it."""
    given = {each: values[each] for each in names if values.get(each) is not None}
    if len({repr(value) for value in given.values()}) > 1:
        told = " and ".join(f"{each} {shown(value)}" for each, value in given.items())
        raise InputError(f"the config has two values of one field: got {told}; leave one out")
    if not given:
        return {}
    values.update(dict.fromkeys(names, next(iter(given.values()))))
    return {each: each if each in given else next(iter(given)) for each in names}


#: What a layer's own config says, by what the architecture calls it for such layers.
_OF_FULL_ATTENTION = {
    "head_dim": "global_head_dim",
    "num_key_value_heads": "num_global_key_value_heads",
}


def _take_overrides(name: str, architecture: Architecture, values: dict[str, Any]) -> None:
    """Read ``per_layer_config``: what some layers have of their own, as ``transformers`` 5 writes.

    Raises:
        InputError: Some layers have something that the architecture's entry does not know.
    """
    own = values.get("per_layer_config")
    if not own:
        return
    layers = list(own.values()) if isinstance(own, dict) else []
    first = layers[0] if layers else None
    is_known = isinstance(first, dict) and all(each == first for each in layers)
    known = _OF_FULL_ATTENTION if "global_head_dim" in _used(architecture) else {}
    if not is_known or not set(first or ()) <= set(known):
        raise UnknownModel(
            f"{name} is not known with layers that differ so: its config has per_layer_config "
            f"{shown(own)}; {ANOTHER_WAY}"
        )
    for key, value in (first or {}).items():
        values[known[key]] = value
    values["attention_k_eq_v"] = "num_key_value_heads" in (first or {})


# --------------------------------------------------------------------------- contradictions

#: Fields that say of what kind the layers are: an architecture that does not use them cannot
#: describe a config that gives them.
_OF_THEIR_KIND = {
    **dict.fromkeys(_ALSO_CALLED[0], "a mixture of experts"),
    "moe_num_experts": "a mixture of experts",
    "kv_lora_rank": "multi-head latent attention",
    "linear_num_value_heads": "linear attention",
    "mamba_num_heads": "state space layers",
    "mamba_n_heads": "state space layers",
    "moe_latent_size": "experts of another width",
    "index_n_heads": "an indexer",
}


def _check_kind(
    name: str,
    architecture: Architecture,
    values: Mapping[str, Any],
    written: Mapping[str, str],
) -> None:
    used = _used(architecture)
    for field_name, what in _OF_THEIR_KIND.items():
        value = values.get(field_name)
        is_many = value not in (None, 0, 1, False)
        alike = next((names for names in _ALSO_CALLED if field_name in names), (field_name,))
        called = written.get(field_name, field_name)
        is_used = any(each in used for each in alike)
        if is_many and not is_used:
            raise UnknownModel(
                f"{name} is not known with {what}: its config has {called} {shown(value)}; "
                f"{ANOTHER_WAY}"
            )
        if is_used and not (value is None or (type(value) is int and value >= 0)):
            raise InputError(
                f"the config of {name} must have {called}, a whole number of at least 0: got "
                f"{shown(value)}"
            )


def _check_alike(name: str, architecture: Architecture, values: Mapping[str, Any]) -> None:
    for one, other in architecture.alike.items():
        if one in values and values[one] != values.get(other):
            raise UnknownModel(
                f"{name} is known only with {one} as {other}: its config has "
                f"{shown(values[one])} and {shown(values.get(other))}; {ANOTHER_WAY}"
            )


def _used(architecture: Architecture) -> str:
    return " ".join(
        formula
        for each in architecture.modules
        for formula in (each.number, each.reads, *each.writes)
    )
