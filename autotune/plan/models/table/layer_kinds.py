"""Of what kind the decoder layers of a model are, by its config and a layer's number."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import Any

from autotune.errors import InputError, shown
from autotune.plan.models.modules import DENSE, SPARSE, LayerKind

_Config = Mapping[str, Any]

# --------------------------------------------------------------------------- mixtures of experts


def every(_config: _Config, _index: int) -> str:
    """Every decoder layer is a mixture of experts."""
    return SPARSE


def after_the_first(
    first: str = "first_k_dense_replace",
    step: str = "moe_layer_freq",
    number: str = "",
    *,
    is_listed: bool = False,
) -> LayerKind:
    """All but the first layers are mixtures, or every n-th of those: DeepSeek and many others.

    Args:
        first: The field with how many dense layers there are before all others; 0 without it.
        step: The field with the n; 1 without it.
        number: The field with the number of experts, which must be there.
        is_listed: Whether vLLM's class reads ``mlp_layer_types``, where that is there. Others may
            have it as long as it says the same.
    """

    def kind(config: _Config, index: int) -> str:
        listed = _listed(config, "mlp_layer_types", index)
        if listed is not None:
            _known(listed, (DENSE, SPARSE), "mlp_layer_types", index)
            if is_listed or config.get(first) is None:
                return listed
        is_sparse = _has_experts(config, number or "n_routed_experts")
        is_sparse = is_sparse and index >= _whole(config, first, 0)
        found = _named(is_sparse and index % _step(config, step) == 0)
        if listed not in (None, found):
            raise InputError(
                f"the config's mlp_layer_types says {listed} of layer {index}, which is {found} by "
                f"{first} {shown(config.get(first))}; vLLM reads the latter: leave one out"
            )
        return found

    return kind


def by_step(config: _Config, index: int) -> str:
    """Every n-th layer is a mixture but those that the config names as dense: Qwen."""
    dense = config.get("mlp_only_layers", ())
    if not isinstance(dense, list | tuple) or not all(type(each) is int for each in dense):
        raise InputError(
            f"the config's mlp_only_layers must be a list of whole numbers: got {shown(dense)}"
        )
    is_sparse = _has_experts(config, "num_experts") and index not in dense
    return _named(is_sparse and (index + 1) % _step(config, "decoder_sparse_step") == 0)


def interleaved(config: _Config, index: int) -> str:
    """Every n-th layer is a mixture, and none with an n of 0: Llama 4."""
    step = _whole(config, "interleave_moe_layer_step", 1)
    return _named(step > 0 and (index + 1) % step == 0)


def from_start_to_end(config: _Config, index: int) -> str:
    """Every n-th layer from a first to a last one is a mixture: Ernie 4.5."""
    start = _whole(config, "moe_layer_start_index", 0)
    end = config.get("moe_layer_end_index")
    is_before_end = end in (None, -1) or index <= _whole(config, "moe_layer_end_index", 0)
    is_sparse = _has_experts(config, "moe_num_experts") and index >= start and is_before_end
    return _named(is_sparse and (index + 1) % _step(config, "moe_layer_interval") == 0)


def by_offset(step: str, offset: str, number: str) -> LayerKind:
    """Every n-th layer from an offset on is a mixture: Jamba."""

    def kind(config: _Config, index: int) -> str:
        is_nth = _is_nth_from(config, index, step=(step, 2), offset=(offset, 1))
        return _named(is_nth and _whole(config, number, None) > 1)

    return kind


def if_many(number: str, *, size: str = "") -> LayerKind:
    """Every layer is a mixture in models that have experts, none in others.

    Args:
        number: The field with the number of experts.
        size: A field that models with experts have: a config with neither has none. Without this a
            config without ``number`` is refused.
    """

    def kind(config: _Config, _index: int) -> str:
        has_none = bool(size) and config.get(size) is None
        return _named(_whole(config, number, 0 if has_none else None) > 0)

    return kind


# --------------------------------------------------------------------------- attention


def attention_kinds(
    *known: str,
    fields: Sequence[str] = ("layer_types", "layers_block_type"),
    interval: str = "",
    alike: Mapping[str, str] | None = None,
) -> LayerKind:
    """The kind that the config names for each layer, such as ``linear_attention``.

    Args:
        known: Every kind that there may be.
        fields: The fields that may hold the list, the first that is there.
        interval: The field with an n, for configs without the list: every n-th layer has
            ``full_attention`` and the others ``linear_attention``; 4 without it.
        alike: Other names of a kind.
    """

    def kind(config: _Config, index: int) -> str:
        for field in fields:
            found = _listed(config, field, index)
            if found is not None:
                return _known((alike or {}).get(found, found), known, field, index)
        if not interval:
            raise InputError(
                f"the config must have {fields[0]}, a kind for each layer: got nothing"
            )
        is_full = (index + 1) % _step(config, interval, 4) == 0
        return "full_attention" if is_full else "linear_attention"

    return kind


def attention_by_period(config: _Config, index: int) -> str:
    """Every n-th layer from an offset on has attention, the others Mamba: Jamba."""
    step, offset = ("attn_layer_period", 8), ("attn_layer_offset", 4)
    return "attention" if _is_nth_from(config, index, step=step, offset=offset) else "mamba"


#: What ``transformers`` 5 calls layers that 4 called otherwise.
NAMES_OF_4 = {"linear_attention": "mamba", "full_attention": "attention"}

#: The letters of ``hybrid_override_pattern``.
_LETTERS = {"M": "mamba", "*": "attention", "-": "mlp", "E": "moe"}


_by_name = attention_kinds(
    *_LETTERS.values(), fields=("layers_block_type", "layer_types"), alike=NAMES_OF_4
)


def by_letter(config: _Config, index: int) -> str:
    """The kind by a letter for each layer, or by a list: Nemotron-H."""
    pattern = config.get("hybrid_override_pattern")
    if pattern is None:
        return _by_name(config, index)
    if not isinstance(pattern, str):
        raise InputError(
            f"the config's hybrid_override_pattern must have a letter for each layer: got "
            f"{shown(pattern)}"
        )
    _check_length(config, "hybrid_override_pattern", pattern)
    return _LETTERS[_known(pattern[index], _LETTERS, "hybrid_override_pattern", index)]


def with_index(config: _Config, index: int) -> str:
    """Whether a layer looks its tokens up itself, or uses the choice of one before it: GLM 5."""
    pattern = config.get("index_topk_pattern")
    if pattern is not None:
        if not isinstance(pattern, str | list):
            raise InputError(
                f"the config's index_topk_pattern must have a letter for each layer: got "
                f"{shown(pattern)}"
            )
        return "no index" if pattern[index : index + 1] in ("S", ["S"]) else "index"
    offset = _whole(config, "index_skip_topk_offset", 2)
    return "no index" if max(index - offset + 1, 0) % _step(config, "index_topk_freq") else "index"


def is_late(config: _Config, index: int) -> bool:
    """Whether a layer takes its keys and values from one before it of its kind: Gemma 4."""
    layers, shared = config["num_hidden_layers"], _whole(config, "num_kv_shared_layers", 0)
    kinds = config.get("layer_types") or ()
    own = int(layers) - shared
    if own < 1 or (index >= own and kinds[index] not in kinds[:own]):
        raise InputError(
            "the config's num_kv_shared_layers must leave a layer of each kind with keys of its "
            f"own: got {shared} of num_hidden_layers {layers}"
        )
    return index >= own


# --------------------------------------------------------------------------- values


def _named(is_sparse: bool) -> str:
    return SPARSE if is_sparse else DENSE


def _listed(config: _Config, field: str, index: int) -> str | None:
    """What a list says of a layer; None where the config has no such list."""
    listed = config.get(field)
    if listed is None:
        return None
    if not isinstance(listed, list) or index >= len(listed) or not isinstance(listed[index], str):
        raise InputError(
            f"the config's {field} must be a list with a kind for each layer: got {shown(listed)}"
        )
    if field != "mlp_layer_types":  # vLLM reads the first entries of a longer one (AXK1.py)
        _check_length(config, field, listed)
    return str(listed[index])


def _check_length(config: _Config, field: str, kinds: Sequence[object]) -> None:
    """Refuse a kind for layers that are not there, or none for some that are."""
    layers = config["num_hidden_layers"]
    if len(kinds) != layers:
        raise InputError(
            f"the config's {field} must have a kind for each layer: got {len(kinds)} for "
            f"num_hidden_layers {layers}"
        )


def _known(kind: str, known: Collection[str], field: str, index: int) -> str:
    """A kind that the architecture has; vLLM builds no layer of another one."""
    if kind not in known:
        raise InputError(
            f"the config's {field} must have one of {', '.join(known)} for each layer: got "
            f"{shown(kind)} for layer {index}"
        )
    return kind


def _step(config: _Config, name: str, default: int = 1) -> int:
    """The n of every n-th layer; 1 where the architecture has no such field."""
    return _whole(config, name, default, least=1) if name else 1


def _is_nth_from(
    config: _Config, index: int, *, step: tuple[str, int], offset: tuple[str, int]
) -> bool:
    """Whether a layer is an n-th one from an offset on, by two fields with their defaults."""
    return (index - _whole(config, *offset)) % _step(config, *step) == 0


def _has_experts(config: _Config, name: str) -> bool:
    """Whether the model has experts at all: a config without the field is not taken for dense."""
    return _whole(config, name, None) > 0


def _whole(config: _Config, name: str, default: int | None, *, least: int = 0) -> int:
    value = config.get(name)
    value = default if value is None else value
    if isinstance(value, bool) or not isinstance(value, int) or value < least:
        got = "nothing" if value is None else shown(value)
        raise InputError(
            f"the config's {name} must be a whole number of at least {least}: got {got}"
        )
    return value
