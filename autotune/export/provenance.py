"""The file beside vLLM's that says where each entry comes from.

It holds no times of day: the same measurements give the same bytes. In the collection that comes
with autotune it is compressed, since vLLM never reads it.
"""

from __future__ import annotations

import gzip
import json
import re
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from autotune.choose.selection import LayerChoice, Ratio, Selection
from autotune.errors import InputError, printable
from autotune.export.names import PACKED, PROVENANCE_SUFFIX
from autotune.export.nested import leaf_at, read_json, unusable
from autotune.launch.environment import Environment
from autotune.launch.op import DenseKey, LookupKey, MoeKey, gpu_file_prefix, key_of
from autotune.version import __version__

SCHEMA = "autotune-provenance/1"

#: Decimals of figures in microseconds and of ratios: a tenth of a nanosecond, far below the noise.
_DECIMALS = 4

#: By a tuned file's name and a key such as ``9/3/16/4096/16``, what is known of the entry.
Entries = dict[str, dict[str, dict[str, Any]]]

#: Bytes of the file, when it is not compressed; ten thousand entries have fewer.
MOST_BYTES = 64 * 2**20

_NUMBER = re.compile(r"\d{1,18}", re.ASCII)


def provenance_name(gpu: str) -> str:
    """The file's name for a GPU."""
    return f"{gpu_file_prefix(gpu)}{PROVENANCE_SUFFIX}"


def provenance_in(folder: Path, gpu: str) -> Path:
    """The file of a folder for a GPU, which may be a compressed one."""
    plain = folder / provenance_name(gpu)
    packed = folder / f"{plain.name}{PACKED}"
    return packed if packed.exists() and not plain.exists() else plain


def entry_of(selection: Selection, environment: Environment) -> dict[str, Any]:
    """What is known of one exported configuration, JSON-ready."""
    entry: dict[str, Any] = {
        "latency_us": round(selection.latency_us, _DECIMALS),
        "default_latency_us": _rounded(selection.default_latency_us),
        **_speedup(selection.ratio),
        "trials": selection.trials,
        "outcomes": dict(sorted(selection.outcomes.items())),
        "shape": selection.shape.as_dict(),
        "config": selection.config.as_dict(),
        "is_default": selection.is_default,
        "is_throttled": selection.is_throttled,
        "environment": environment.as_dict(),
    }
    if selection.layer is not None:
        entry["layer"] = _layer(selection.layer)
    if selection.replayed is not None:
        entry["replayed"] = selection.replayed.as_dict()
    if selection.exchanged is not None:
        loss = round(selection.exchanged.loss, _DECIMALS)
        entry["exchanged"] = selection.exchanged.as_dict() | {"loss": loss}
    return entry


def _layer(choice: LayerChoice) -> dict[str, Any]:
    """The ``block_m`` that a MoE layer's ops share, and what the layer gains by it."""
    ops = [op.value for op in choice.ops]
    return {"block_m": choice.block_m, "chosen_for": ops, **_speedup(choice.ratio)}


def _speedup(ratio: Ratio | None) -> dict[str, Any]:
    return {
        "speedup": ratio and round(ratio.value, _DECIMALS),
        "interval": ratio and [round(ratio.low, _DECIMALS), round(ratio.high, _DECIMALS)],
    }


def _rounded(value: float | None) -> float | None:
    return None if value is None else round(value, _DECIMALS)


def read_entries(path: Path) -> Entries:
    """The entries of a provenance file; none where there is no such file.

    Raises:
        ExportError: The file is broken, or autotune did not write it.
    """
    content = read_content(path)
    return {} if content is None else entries_in(path, content)


def read_content(path: Path) -> object:
    """What a provenance file holds, compressed or not; None where there is no such file.

    Raises:
        ExportError: It cannot be read, or is no JSON.
    """
    if path.suffix != PACKED:
        return read_json(path)
    try:
        with gzip.open(path) as file:
            text = file.read(MOST_BYTES + 1)
        content: object = json.loads(text) if len(text) <= MOST_BYTES else None
    except FileNotFoundError:
        return None
    except (OSError, EOFError, ValueError, RecursionError, zlib.error) as error:
        reason = getattr(error, "strerror", None) or error
        raise unusable(path, f"it is no compressed JSON: {printable(str(reason))}") from error
    if content is None:
        raise unusable(path, f"it holds only null, or more than {MOST_BYTES:,} bytes")
    return content


def entries_in(path: Path, content: object) -> Entries:
    """The entries of a provenance file's content.

    Raises:
        ExportError: The content makes no sense, or autotune did not write it.
    """
    if not isinstance(content, dict) or content.get("schema") != SCHEMA:
        raise unusable(path, f"it is no {SCHEMA} file")
    entries = content.get("entries")
    if not isinstance(entries, dict) or not all(map(_are_entries, entries.values())):
        raise unusable(path, "its entries are not nested by file and look-up path")
    return entries


def read_environment(path: Path) -> Environment | None:
    """Where the entries of the last export were measured; None where the file does not say."""
    try:
        content = read_content(path)
        return Environment.from_mapping(content["environment"] if isinstance(content, dict) else {})
    except (InputError, KeyError, AttributeError):
        return None


def _are_entries(of_file: object) -> bool:
    return isinstance(of_file, dict) and all(
        _is_key(text) and isinstance(entry, dict) for text, entry in of_file.items()
    )


def _is_key(text: str) -> bool:
    levels = text.split("/")
    has_all = len(levels) in (len(DenseKey._fields), len(MoeKey._fields))
    return has_all and all(map(_NUMBER.fullmatch, levels))


def key_in(text: str) -> LookupKey:
    """The key that a text such as ``9/3/16/4096/16`` spells."""
    return key_of(map(int, text.split("/")))


def still_true(entries: Mapping[str, Any], table: dict[str, Any]) -> dict[str, Any]:
    """The entries of a file whose configuration is the one that the file holds.

    The others were edited by hand, or belong to an export that was cut short.
    """
    return {
        text: entry
        for text, entry in entries.items()
        if leaf_at(table, key_in(text)) == entry.get("config")
    }


def as_content(entries: Entries, environment: Environment) -> dict[str, Any]:
    """The content of the whole file, sorted by file and key."""
    return {
        "schema": SCHEMA,
        "autotune": __version__,
        "environment": environment.as_dict(),
        "entries": {
            name: {text: entries[name][text] for text in sorted(entries[name], key=key_in)}
            for name in sorted(entries)
        },
    }
