"""Reading a model's ``config.json``: finding the file, and the numbers in it."""

from __future__ import annotations

import importlib
import json
import math
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from autotune.errors import InputError, install_hint
from autotune.plan.models.architectures import ARCHITECTURES
from autotune.plan.models.modules import Architecture, Module

#: ``organisation/name`` on the Hugging Face hub.
_HUB_ID = re.compile(r"[\w.-]+/[\w.-]+", re.ASCII)

#: Where there are fewer of these heads than GPUs, vLLM copies them: each GPU then has one.
_MAY_BE_COPIED = "num_key_value_heads"

#: No model has a larger size: a larger number is a slip, and is better refused here than later.
_LARGEST = 2**24

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
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise InputError(f"{path}: cannot be read as JSON: {error}") from error
    if not isinstance(content, dict):
        raise InputError(f"{path}: must hold a JSON object: got {type(content).__name__}")
    return content


def _locate(source: str, name: str) -> Path:
    path = Path(source).expanduser()
    if path.is_dir():
        if not (path / name).is_file():
            raise InputError(f"{source}: the folder has no {name}; give the path of one")
        return path / name
    if path.is_file():
        return path
    if _HUB_ID.fullmatch(source):
        return _fetch(source, name)
    raise InputError(
        f"{source}: no such file or folder; give the path of {name}, its folder, "
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
    """

    name: str
    architecture: Architecture
    values: Mapping[str, Any]

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
                f"unknown model: looked for architectures in its config: got {names!r}; "
                f"known are {', '.join(ARCHITECTURES)}; {_BY_HAND}"
            )
        architecture = ARCHITECTURES[name]
        text = config.get("text_config")
        values = dict(text if isinstance(text, dict) else config)
        values = {key: value for key, value in values.items() if value is not None}
        return cls(name, architecture, {**architecture.defaults, **values})

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
            got = "nothing" if value is None else repr(value)
            raise InputError(
                f"the config of {self.name} must have {name}, a whole number of at least 1: "
                f"got {got}; {_BY_HAND}"
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


#: Fields that follow from others where a config leaves them out, as in ``transformers``.
_IMPLIED: Mapping[str, Callable[[Fields], int]] = {
    "head_dim": lambda fields: fields.number("hidden_size") // fields.number("num_attention_heads"),
    "num_key_value_heads": lambda fields: fields.number("num_attention_heads"),
}
