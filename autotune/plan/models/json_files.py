"""Finding and reading the JSON files of a model or an adapter, here or on the Hugging Face hub."""

from __future__ import annotations

import importlib
import json
import re
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from autotune.errors import InputError, install_hint, printable
from autotune.plan.documents import expanded, is_folder, is_there, read_document

#: ``organisation/name`` on the Hugging Face hub.
_HUB_ID = re.compile(r"[\w.-]+/[\w.-]+", re.ASCII)


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
    except json.JSONDecodeError as error:
        raise InputError(f"{shown_path}: cannot be read as JSON: {error}") from error
    except ValueError:  # Python reads no longer numbers
        raise InputError(
            f"{shown_path}: cannot be read as JSON: a number in it is too long: more than "
            f"{sys.get_int_max_str_digits()} digits"
        ) from None
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
