"""The nested table that a tuned file holds: read with care, added to, written byte-stable."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

from autotune.errors import ExportError

#: Levels of keys above an entry of a dense op: max_loras, num_slices, m, k, n. MoE ops have i, too.
LEVELS = 5

#: A key as vLLM asks for it; with a leading zero it would only ever be found as the nearest.
_KEY = re.compile(r"0|[1-9][0-9]{0,17}")


def read_json(path: Path) -> object:
    """A JSON file's content; None where there is no such file.

    Raises:
        ExportError: It cannot be read, or is no JSON.
    """
    try:
        content: object = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None
    except OSError as error:
        raise ExportError(
            f"cannot read {path}: {error.strerror}; the measurements are kept in the database: "
            "give another --output, and `autotune export` writes them there"
        ) from error
    except (ValueError, RecursionError) as error:
        raise unusable(path, f"it is no JSON: {error}") from error
    if content is None:
        raise unusable(path, "it holds only null")
    return content


def unusable(path: Path, reason: str) -> ExportError:
    """The error for a file that is there and makes no sense."""
    return ExportError(f"cannot use {path}: {reason}; move it away or give another folder")


def read_table(path: Path, levels: int = LEVELS) -> dict[str, Any] | None:
    """A tuned file's content, its nesting checked; None where there is no such file.

    Args:
        path: The file.
        levels: Levels of keys above its entries, as many as its op has.

    Raises:
        ExportError: It cannot be read, or vLLM could not look anything up in it.
    """
    content = read_json(path)
    return None if content is None else _nested(path, content, levels, levels)


def _nested(path: Path, table: object, below: int, levels: int) -> dict[str, Any]:
    """The table, once it is sure to hold ``below`` of ``levels`` levels of whole-number keys."""
    if not isinstance(table, dict):
        raise unusable(path, f"it should nest {levels} levels of objects above its entries")
    if below == 0:
        if any(isinstance(value, dict | list) for value in table.values()):
            raise unusable(path, f"it nests deeper than {levels} levels and an entry")
        return table
    for key, inner in table.items():
        if not _KEY.fullmatch(key):
            raise unusable(path, f"its key {key!r} is no whole number")
        _nested(path, inner, below - 1, levels)
    return table


def leaf_at(table: object, key: tuple[int, ...]) -> object:
    """The entry under exactly these keys; None where there is none."""
    below: Any = table
    for step in key:
        below = below.get(str(step)) if isinstance(below, dict) else None
        if below is None:
            return None
    return below


def put_leaf(table: dict[str, Any], key: tuple[int, ...], leaf: dict[str, int]) -> None:
    """Set the entry under these keys, in place."""
    *above, last = key
    for step in above:
        table = table.setdefault(str(step), {})
    table[str(last)] = leaf


def as_text(content: dict[str, Any]) -> str:
    """JSON as it is written to disk, keys in the order given."""
    return json.dumps(content, indent=2, ensure_ascii=False) + "\n"


def sorted_table(table: dict[str, Any], levels: int) -> dict[str, Any]:
    """The table with its keys in the order of their integers; entries stay as they are."""
    if levels == 0:
        return table
    return {key: sorted_table(table[key], levels - 1) for key in sorted(table, key=int)}
