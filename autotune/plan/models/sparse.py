"""Which decoder layers of a model are mixtures of experts, by its config and a layer's number."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from autotune.errors import InputError, shown


def every(_config: Mapping[str, Any], _index: int) -> bool:
    """Every decoder layer."""
    return True


def after_the_first(config: Mapping[str, Any], index: int) -> bool:
    """All but the first layers, or every n-th after them: DeepSeek."""
    first, step = _whole(config, "first_k_dense_replace", 0), _whole(config, "moe_layer_freq", 1)
    return _has_experts(config, "n_routed_experts") and index >= first and _is_nth(index, step)


def by_step(config: Mapping[str, Any], index: int) -> bool:
    """Every n-th layer but those that the config names as dense: Qwen."""
    dense = config.get("mlp_only_layers", ())
    if not isinstance(dense, list | tuple) or not all(type(each) is int for each in dense):
        raise InputError(
            f"the config's mlp_only_layers must be a list of whole numbers: got {shown(dense)}"
        )
    step = _whole(config, "decoder_sparse_step", 1)
    return _has_experts(config, "num_experts") and index not in dense and _is_nth(index + 1, step)


def interleaved(config: Mapping[str, Any], index: int) -> bool:
    """Every n-th layer: Llama 4."""
    return _is_nth(index + 1, _whole(config, "interleave_moe_layer_step", 1))


def _is_nth(number: int, step: int) -> bool:
    return step > 0 and number % step == 0


def _has_experts(config: Mapping[str, Any], name: str) -> bool:
    """Whether the model has experts at all: a config without the field is not taken for dense."""
    return _whole(config, name, None) > 0


def _whole(config: Mapping[str, Any], name: str, default: int | None) -> int:
    value = config.get(name, default)
    if isinstance(value, bool) or not isinstance(value, int) or value < 0:
        got = "nothing" if value is None else shown(value)
        raise InputError(f"the config's {name} must be a whole number: got {got}")
    return value
