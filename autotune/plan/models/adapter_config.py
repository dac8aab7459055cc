"""Reading an adapter's ``adapter_config.json``, and refusing what vLLM refuses."""

from __future__ import annotations

import re
import warnings
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from autotune.errors import InputError, printable, shown
from autotune.plan.models.adapters import Adapter, AdapterError
from autotune.plan.models.json_files import read_json

#: The modules that vLLM takes whole from an adapter, for classification.
_SAVED_WHOLE = {"classifier", "score"}

#: Ways to make the first weights that leave the model's own weights as they are.
_PLAIN_INITS = {"gaussian", "eva", "orthogonal", "mica", "lora_ga"}

#: No name of a module is longer.
_LONGEST_KEY = 1000


def read_adapter(source: str) -> Adapter:
    """Read an adapter's config.

    Args:
        source: An ``adapter_config.json``, a folder with one, or an id on the Hugging Face hub.

    Raises:
        AdapterError: The file cannot be had or read, it is not a LoRA adapter's, or vLLM refuses
            such an adapter.
    """
    try:
        config = read_json(source, "adapter_config.json")
    except InputError as error:
        raise AdapterError(str(error)) from error
    source = printable(source)
    kind = config.get("peft_type", "LORA")
    if kind != "LORA":
        raise AdapterError(f"{source}: not a LoRA adapter: peft_type is {shown(kind)}")
    _check_served(source, config)
    rank, rank_field = _largest_rank(source, config)
    _check_needed(source, config)
    _check_alphas(source, config)
    return Adapter(
        source=source,
        rank=rank,
        rank_field=rank_field,
        target_modules=_names_or_pattern(source, "target_modules", config),
        target_parameters=_names(source, "target_parameters", config),
        exclude_modules=_names_or_pattern(source, "exclude_modules", config),
        layers=_layers(source, config),
        layers_pattern=_patterns(source, config),
    )


# --------------------------------------------------------------------------- what vLLM refuses


def _is_given(value: object) -> bool:
    return bool(value)


def _is_other_bias(value: object) -> bool:
    return value != "none"


def _is_other_init(value: object) -> bool:
    return isinstance(value, str) and value.lower() not in _PLAIN_INITS


#: Features that vLLM refuses an adapter for, with its reason: ``vllm/lora/peft_helper.py`` of
#: 0.33.0.
_REFUSED: Mapping[str, tuple[Callable[[object], bool], str]] = {
    "use_dora": (_is_given, "vLLM does not support DoRA"),
    "bias": (_is_other_bias, "vLLM does not support an adapter's bias"),
    "lora_bias": (_is_given, "vLLM does not support LoRA bias"),
    "layer_replication": (_is_given, "vLLM does not support layer_replication"),
    "init_lora_weights": (
        _is_other_init,
        "vLLM does not support weights whose making changed the model's own",
    ),
    "alora_invocation_tokens": (_is_given, "vLLM does not support Activated LoRA"),
    "use_bdlora": (_is_given, "vLLM does not support block-diagonal LoRA"),
    "use_qalora": (_is_given, "vLLM does not support QALoRA"),
    # PEFT saves these as tensors of another name, which vLLM's loader stops at.
    "trainable_token_indices": (_is_given, "vLLM does not support trained tokens"),
}

#: What vLLM must be told of an adapter: the fields of its ``PEFTHelper`` without a default.
_NEEDED = ("lora_alpha", "target_modules")


def _check_served(source: str, config: Mapping[str, Any]) -> None:
    for field, (is_refused, reason) in _REFUSED.items():
        value = config.get(field)
        if field in config and is_refused(value):
            raise AdapterError(
                f"{source}: {reason}: got {field} {shown(value)}; leave --adapter out, or "
                "convert it"
            )
    saved = [name for name in _names(source, "modules_to_save", config) if name not in _SAVED_WHOLE]
    if saved:
        raise AdapterError(
            f"{source}: vLLM takes no whole modules from an adapter but classifier and score: got "
            f"modules_to_save {shown(saved)}; leave --adapter out, or convert it"
        )


def _check_needed(source: str, config: Mapping[str, Any]) -> None:
    lacking = [field for field in _NEEDED if field not in config]
    if lacking:
        raise AdapterError(
            f"{source}: vLLM takes no adapter without {lacking[0]}: got nothing for it; write it "
            "there, as PEFT does"
        )
    alpha = config["lora_alpha"]
    if not isinstance(alpha, int | float):
        raise AdapterError(f"{source}: lora_alpha must be a number: got {shown(alpha)}")


# --------------------------------------------------------------------------- values of the file


def _largest_rank(source: str, config: Mapping[str, Any]) -> tuple[int, str]:
    """The largest rank, and the field that gives it."""
    patterns = _of_layers(source, "rank_pattern", config)
    values = {"r": config.get("r")} | {
        f"rank_pattern[{shown(key)}]": value for key, value in patterns.items()
    }
    ranks = {field: _rank(source, field, value) for field, value in values.items()}
    largest = max(ranks, key=ranks.__getitem__)
    return ranks[largest], largest


def _rank(source: str, field: str, value: object) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        got = "nothing" if value is None else shown(value)
        raise AdapterError(f"{source}: {field} must be a whole number of at least 1: got {got}")
    return value


def _check_alphas(source: str, config: Mapping[str, Any]) -> None:
    for key, value in _of_layers(source, "alpha_pattern", config).items():
        if not isinstance(value, int | float):
            raise AdapterError(
                f"{source}: alpha_pattern[{shown(key)}] must be a number: got {shown(value)}"
            )


def _of_layers(source: str, field: str, config: Mapping[str, Any]) -> Mapping[str, Any]:
    """Values by the patterns of the layers that they are for, each a valid one."""
    values = config.get(field) or {}
    if not isinstance(values, dict):
        raise AdapterError(f"{source}: {field} must be an object: got {shown(values)}")
    _check_patterns(source, field, values)
    return values


def _check_patterns(source: str, field: str, keys: Iterable[str]) -> None:
    """Refuse keys that PEFT and vLLM cannot match: ``_match_pattern`` in ``peft_helper.py``."""
    for key in keys:
        if len(key) > _LONGEST_KEY:
            raise AdapterError(
                f"{source}: {field} must have keys of at most {_LONGEST_KEY} characters: got "
                f"{shown(key)}"
            )
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # of what a later Python may read in another way
                re.compile(rf"(.*\.)?({key})$")
        except (re.error, OverflowError, RecursionError) as error:
            reason = getattr(error, "msg", error)  # without a place, which is that of the whole
            raise AdapterError(
                f"{source}: {field}[{shown(key)}] is no valid pattern: {reason}; write a layer's "
                "name there, such as o_proj"
            ) from None


def _names_or_pattern(source: str, key: str, config: Mapping[str, Any]) -> tuple[str, ...] | str:
    value = config.get(key)
    return value if isinstance(value, str) and value else _names(source, key, config)


def _names(source: str, key: str, config: Mapping[str, Any]) -> tuple[str, ...]:
    value = config.get(key)
    if value is None:
        return ()
    if not isinstance(value, list) or not all(isinstance(name, str) and name for name in value):
        raise AdapterError(f"{source}: {key} must be a list of names: got {shown(value)}")
    return tuple(value)


def _layers(source: str, config: Mapping[str, Any]) -> frozenset[int] | None:
    """``layers_to_transform``."""
    value = config.get("layers_to_transform")
    if value is None:
        return None
    numbers = value if isinstance(value, list) else [value]
    if not all(isinstance(each, int) and not isinstance(each, bool) for each in numbers):
        raise AdapterError(
            f"{source}: layers_to_transform must be a list of whole numbers: got {shown(value)}"
        )
    return frozenset(numbers) or None  # PEFT takes an empty list for none


def _patterns(source: str, config: Mapping[str, Any]) -> tuple[str, ...]:
    """``layers_pattern``: what the modules with the decoder layers are called; none for any."""
    value = config.get("layers_pattern")
    if isinstance(value, str):
        return (value,) if value else ()
    return _names(source, "layers_pattern", config)
