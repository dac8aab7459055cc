"""The nested table that a tuned file holds: read with care, added to, written byte-stable."""

from __future__ import annotations

import json
import re
from json.encoder import encode_basestring
from pathlib import Path
from typing import Any

from autotune.errors import ExportError, printable, shown
from autotune.files import read_file
from autotune.launch.op import LookupKey

#: A key as vLLM spells it. It finds one with a leading zero only as the nearest.
_KEY = re.compile(r"0|[1-9][0-9]{0,17}")


def read_json(path: Path) -> object:
    """A JSON file's content; None where there is no such file.

    Raises:
        ExportError: It cannot be read, or is no JSON.
    """
    try:
        content: object = json.loads(read_file(path), parse_constant=_no_constant)
    except FileNotFoundError:
        return None
    except OSError as error:
        raise ExportError(
            f"cannot read {printable(str(path))}: {error.strerror}; "
            "the measurements are kept in the database: give another --output, and "
            "`autotune export` writes them there"
        ) from error
    except (ValueError, RecursionError) as error:
        raise unusable(path, f"it is no JSON: {printable(str(error))}") from error
    if content is None:
        raise unusable(path, "it holds only null")
    return content


def _no_constant(spelled: str) -> None:
    raise ValueError(f"{spelled} is no number")


def unusable(path: Path, reason: str) -> ExportError:
    """The error for a file that is there and makes no sense."""
    return ExportError(
        f"cannot use {printable(str(path))}: {reason}; move it away or give another folder"
    )


def read_table(path: Path, *, levels: int) -> dict[str, Any] | None:
    """A tuned file's content, its nesting checked; None where there is no such file.

    Args:
        path: The file.
        levels: Number of levels of keys above its entries: those of its op.

    Raises:
        ExportError: It cannot be read, or vLLM could not look anything up in it.
    """
    content = read_json(path)
    return None if content is None else _nested(path, content, levels, levels)


def _nested(path: Path, table: object, below: int, levels: int) -> dict[str, Any]:
    """The table, which must hold the ``below`` innermost of ``levels`` levels of whole numbers."""
    if not isinstance(table, dict):
        raise unusable(path, f"it should nest {levels} levels of objects above its entries")
    if below == 0:
        if any(isinstance(value, dict | list) for value in table.values()):
            raise unusable(path, f"it nests deeper than {levels} levels and an entry")
        return table
    for key, inner in table.items():
        if not _KEY.fullmatch(key):
            raise unusable(path, f"its key {shown(key)} is no whole number")
        _nested(path, inner, below - 1, levels)
    return table


def leaf_at(table: object, key: LookupKey) -> object:
    """The entry under exactly this key; None where there is none."""
    below: Any = table
    for level in key:
        below = below.get(str(level)) if isinstance(below, dict) else None
        if below is None:
            return None
    return below


def put_leaf(table: dict[str, Any], key: LookupKey, leaf: dict[str, int]) -> None:
    """Set the entry under a key, in place."""
    *above, last = key
    for level in above:
        table = table.setdefault(str(level), {})
    table[str(last)] = leaf


def copied(table: Any, levels: int) -> Any:  # noqa: ANN401 - any JSON
    """A table of which every level of keys is new; the entries below them are the same ones."""
    if levels == 0 or not isinstance(table, dict):
        return table
    return {key: copied(below, levels - 1) for key, below in table.items()}


def as_text(content: dict[str, Any]) -> str:
    """JSON as it is written to disk; the order of the keys stays.

    It is what ``json.dumps(content, indent=2, ensure_ascii=False)`` gives, in half the time.

    Raises:
        ValueError: A number is infinite or none.
    """
    return _indented(content, "\n") + "\n"


def _indented(value: Any, line: str) -> str:  # noqa: ANN401 - any JSON
    """The text of a JSON value whose last line begins with ``line``."""
    kind = type(value)
    if kind is str:
        return encode_basestring(value)
    if kind is int:
        return repr(value)
    if not value or (kind is not dict and kind is not list):
        return _encode(value)
    inner = f"{line}  "
    if kind is dict:
        parts = [f"{encode_basestring(key)}: {_indented(value[key], inner)}" for key in value]
        return f"{{{inner}{f',{inner}'.join(parts)}{line}}}"
    return f"[{inner}{f',{inner}'.join(_indented(each, inner) for each in value)}{line}]"


_encode = json.JSONEncoder(ensure_ascii=False, allow_nan=False).encode


def sorted_table(table: dict[str, Any], levels: int) -> dict[str, Any]:
    """The table with its keys in numeric order; the entries stay as they are."""
    if levels == 0:
        return table
    return {key: sorted_table(table[key], levels - 1) for key in sorted(table, key=int)}
