"""Reading a model's ``config.json``: finding the file, and the numbers in it."""

from __future__ import annotations

import importlib
import json
import math
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from autotune.errors import InputError, install_hint, printable, shown
from autotune.plan.documents import expanded, is_folder, is_there, read_document
from autotune.plan.models.architectures import ARCHITECTURES
from autotune.plan.models.modules import Architecture, Module

#: ``organisation/name`` on the Hugging Face hub.
_HUB_ID = re.compile(r"[\w.-]+/[\w.-]+", re.ASCII)

#: Where there are fewer of these heads than GPUs, vLLM copies them: each GPU then has one.
_MAY_BE_COPIED = "num_key_value_heads"

#: No model has a larger size: a larger number is a slip, and is better refused here than later.
_LARGEST = 2**24

#: No model has as many decoder layers: the names of each of them are looked through.
_MOST_LAYERS = 4096

_BY_HAND = (
    "give its layers by hand instead, as [[shapes]] tables with op and hidden_size or slice_sizes "
    "in the study file"
)


def read_config(source: str) -> Mapping[str, Any]:
    """Read a model's config.

    Args:
        source: A ``config.json``, a folder with one, or the model's id on the Hugging Face hub.

    Raises:
        InputError: There is no such file, it cannot be fetched, or it is not a JSON object.
    """
    return read_json(source, "config.json")


def read_json(source: str, name: str) -> Mapping[str, Any]:
    """Read a JSON object from a file.

    Args:
        source: The file's path, its folder's path, or a repository's id on the Hugging Face hub.
        name: The file's name in the folder or the repository.

    Raises:
        InputError: There is no such file, it cannot be fetched, or it is not a JSON object.
    """
    path = _locate(source, name)
    text, shown_path = read_document(path), printable(str(path))
    try:
        content = json.loads(text)
    except ValueError as error:
        raise InputError(f"{shown_path}: cannot be read as JSON: {error}") from error
    except RecursionError:
        raise InputError(f"{shown_path}: cannot be read as JSON: nested too deep") from None
    if not isinstance(content, dict):
        raise InputError(f"{shown_path}: must hold a JSON object: got {type(content).__name__}")
    return content


def _locate(source: str, name: str) -> Path:
    path = expanded(source)
    if is_folder(path):
        if not is_there(path / name):
            raise InputError(f"{printable(source)}: the folder has no {name}; give the path of one")
        return path / name
    if is_there(path):
        return path
    if _HUB_ID.fullmatch(source):
        return _fetch(source, name)
    raise InputError(
        f"{printable(source)}: no such file or folder; give the path of {name}, its folder, "
        "or an id on the Hugging Face hub such as Qwen/Qwen3-8B"
    )


def _fetch(repository: str, name: str) -> Path:
    try:
        # Optional: imported by name, since mypy finds no such module where it is not installed.
        hub = importlib.import_module("huggingface_hub")
    except ImportError:
        raise InputError(
            f"{repository}: no such file here, and no huggingface_hub to look for it on the hub; "
            f"{install_hint('hub')}, or get its {name} and give the path"
        ) from None
    try:
        return Path(hub.hf_hub_download(repository, name))
    except (OSError, ValueError) as error:  # huggingface_hub's errors are one or both of these
        raise InputError(
            f"{repository}: {name} cannot be had from the Hugging Face hub: {_reason(error)}; "
            "check the name, log in to the hub if it is gated, or download the file and give its "
            "path"
        ) from error


def _reason(error: Exception) -> str:
    """The first line of a message, without lines of an HTTP status and a request's number."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    told = [line for line in lines if "Client Error" not in line] or lines
    return (told or [type(error).__name__])[0].rstrip(".")


@dataclass(frozen=True, slots=True)
class Fields:
    """The fields of a config, by the names that formulas use.

    Attributes:
        name: The architecture's name.
        architecture: Its entry in the table.
        values: The fields of the language model; those that the config leaves out have the
            architecture's defaults.
        has_mxfp4_experts: Whether the checkpoint's experts are in MXFP4.
    """

    name: str
    architecture: Architecture
    values: Mapping[str, Any]
    has_mxfp4_experts: bool = False

    @classmethod
    def of(cls, config: Mapping[str, Any]) -> Fields:
        """Find the architecture of a config, and the part that describes its language model.

        Raises:
            InputError: The architecture is not in the table.
        """
        names = config.get("architectures")
        name = names[0] if isinstance(names, list) and names else None
        if not isinstance(name, str) or name not in ARCHITECTURES:
            raise InputError(
                f"unknown model: looked for architectures in its config: got {shown(names)}; "
                f"known are {', '.join(ARCHITECTURES)}; {_BY_HAND}"
            )
        architecture = ARCHITECTURES[name]
        values = _of_language_model(name, architecture, config)
        values = {key: value for key, value in values.items() if value is not None}
        quantization = values.get("quantization_config", config.get("quantization_config"))
        method = quantization.get("quant_method") if isinstance(quantization, dict) else None
        return cls(
            name,
            architecture,
            {**architecture.defaults, **values},
            has_mxfp4_experts=method in ("mxfp4", "gpt_oss_mxfp4"),
        )

    def has(self, module: Module) -> bool:
        """Whether the model has this module at all."""
        if module.if_given and not self.values.get(module.if_given):
            return False
        return not (module.if_absent and self.values.get(module.if_absent))

    def number(self, name: str) -> int:
        """A factor of a formula: a whole number as it stands, or a field of the config.

        Raises:
            InputError: The field is absent, or is not a whole number from 1 to ``_LARGEST``.
        """
        if name.isdecimal():
            return int(name)
        value = self.values.get(name)
        if value is None and name in _IMPLIED:
            return _IMPLIED[name](self)
        if isinstance(value, bool) or not isinstance(value, int) or not 1 <= value <= _LARGEST:
            got = "nothing" if value is None else shown(value)
            raise InputError(
                f"the config of {self.name} must have {name}, a whole number of at least 1: "
                f"got {got}; {_BY_HAND}"
            )
        if name == "num_hidden_layers" and value > _MOST_LAYERS:
            raise InputError(
                f"the config of {self.name} must have {name} of {_MOST_LAYERS} or less: got {value}"
            )
        return value

    def size(self, formula: str, *, ways: int = 1) -> int:
        """The value of a formula, or the part of it that one GPU has.

        Args:
            formula: A sum of products of fields.
            ways: The number of GPUs that divide the first factor of each product.

        Raises:
            InputError: A field is absent, or the GPUs do not divide it.
        """
        total = 0
        for term in formula.split("+"):
            first, *others = (name.strip() for name in term.split("*"))
            total += self._divided(first, ways) * math.prod(map(self.number, others))
        return total

    def _divided(self, name: str, ways: int) -> int:
        value = self.number(name)
        if name == _MAY_BE_COPIED and value < ways and ways % value == 0:
            return 1
        if value % ways:
            raise InputError(
                f"tensor_parallel must divide {name} of {self.name}: got {ways} for {value}"
            )
        return value // ways


#: Names of one and the same field: a release of ``transformers`` writes one, another release the
#: other, such as ``num_experts`` of Qwen3-MoE in 4 and ``num_local_experts`` in 5.
_ALSO_CALLED = (
    ("num_experts", "num_local_experts", "n_routed_experts"),
    ("num_experts_per_tok", "experts_per_token"),
)

#: Fields that say of what kind the layers are: an architecture that does not use them cannot
#: describe a config that gives them.
_OF_THEIR_KIND = {
    **dict.fromkeys(_ALSO_CALLED[0], "a mixture of experts"),
    "kv_lora_rank": "multi-head latent attention",
}


def _of_language_model(
    name: str, architecture: Architecture, config: Mapping[str, Any]
) -> dict[str, Any]:
    """The part of a config that describes its language model, each field by one name.

    Raises:
        InputError: The language model is not one that the architecture's entry describes.
    """
    text = config.get("text_config")
    if text is not None and not isinstance(text, dict):
        raise InputError(f"the config's text_config must be an object: got {shown(text)}")
    values = dict(config if text is None else text)
    kind = values.get("model_type")
    if text is not None and kind is not None and architecture.text_types:
        known = architecture.text_types
        if kind not in known:
            raise InputError(
                f"unknown language model in {name}: got {shown(kind)} for model_type in its "
                f"text_config; known is {' or '.join(known)}; {_BY_HAND}"
            )
    for names in _ALSO_CALLED:
        _call_alike(names, values)
    _check_kind(name, architecture, values)
    return values


def _call_alike(names: Sequence[str], values: dict[str, Any]) -> None:
    """Give a field's value to all of its names."""
    given = {each: values[each] for each in names if values.get(each) is not None}
    if len({repr(value) for value in given.values()}) > 1:
        told = " and ".join(f"{each} {shown(value)}" for each, value in given.items())
        raise InputError(f"the config has two values of one field: got {told}; leave one out")
    there = [each for each in names if each in values]
    if there:
        value = next(iter(given.values()), None)
        values.update(dict.fromkeys(names, value))


def _check_kind(name: str, architecture: Architecture, values: Mapping[str, Any]) -> None:
    used = " ".join(
        formula
        for each in architecture.modules
        for formula in (each.number, each.reads, *each.writes)
    )
    for field_name, what in _OF_THEIR_KIND.items():
        value = values.get(field_name)
        is_many = isinstance(value, int) and value > 1
        alike = next((names for names in _ALSO_CALLED if field_name in names), (field_name,))
        if is_many and not any(each in used for each in alike):
            raise InputError(
                f"{name} is not known with {what}: its config has {field_name} {shown(value)}; "
                f"{_BY_HAND}"
            )


#: Fields that follow from others where a config leaves them out, as in ``transformers``.
_IMPLIED: Mapping[str, Callable[[Fields], int]] = {
    "head_dim": lambda fields: fields.number("hidden_size") // fields.number("num_attention_heads"),
    "num_key_value_heads": lambda fields: fields.number("num_attention_heads"),
}
