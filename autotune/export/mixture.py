"""Deterministic entries and others: which of the two are written, and that a folder holds one kind.

A server with a single entry that splits k gives other bits from run to run. So what was chosen
with ``--deterministic`` is not written beside other entries, unless the user merges them.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

from autotune.errors import ExportError, InputError, printable
from autotune.export.nested import read_table
from autotune.export.provenance import Entries
from autotune.launch.environment import Environment
from autotune.launch.op import LoraOp, key_text
from autotune.launch.sizes import is_shrink

_T = TypeVar("_T")

#: The ops whose kernels add up the parts of a split; the others pay no attention to ``split_k``.
SPLITTING_OPS = tuple(op for op in LoraOp if is_shrink(op))

#: By a file's name, the keys' texts of what is going to be written.
Keys = Mapping[str, Collection[str]]


def of_one_kind(
    stored: Sequence[tuple[Environment, _T]], *, deterministic: bool | None
) -> tuple[list[tuple[Environment, _T]], str]:
    """What a database holds, without what was chosen the other way.

    Args:
        stored: What was chosen in each environment, at least one.
        deterministic: Which kind to keep; None for the only one there is, or for what was chosen
            among all configurations.

    Returns:
        What is kept, and a line that says what was left out; empty where nobody has to be told.

    Raises:
        InputError: There is nothing of the kind, or ``deterministic`` is of another type.
    """
    if deterministic is not None and not isinstance(deterministic, bool):
        raise InputError(f"deterministic: must be true or false: got {deterministic!r}")
    kinds = {environment.deterministic for environment, _ in stored}
    kind = min(kinds) if deterministic is None else deterministic
    kept = [pair for pair in stored if pair[0].deterministic is kind]
    if not kept:
        flag = "--deterministic" if kind else "--no-deterministic"
        raise InputError(f"nothing here was chosen with {flag}; tune with it")
    if deterministic is None and len(kinds) > 1:
        return kept, (
            "The database also holds what was chosen with --deterministic: the same flag here "
            "writes that."
        )
    return kept, ""


def splits(op: LoraOp, entry: Mapping[str, object]) -> bool:
    """Whether an entry asks a kernel to add up parts of a sum in any order."""
    return op in SPLITTING_OPS and op.values_in(entry).get("split_k", 1) != 1


def refuse_mixed(
    folder: Path, gpu: str, writes: Keys, entries: Entries, *, deterministic: bool
) -> None:
    """Refuse to write one kind of entries beside the other.

    Args:
        folder: Where to write.
        gpu: Names the files.
        writes: What is going to be written; it replaces what is there.
        entries: What the folder's provenance knows.
        deterministic: The kind that is written.

    Raises:
        ExportError: Entries of the other kind would stay.
    """
    found = _splitting(folder, gpu) if deterministic else _deterministic(entries)
    for name, keys in found:
        staying = [key for key in keys if key not in writes.get(name, ())]
        if staying:
            what = "split k" if deterministic else "were chosen with --deterministic"
            others = "what never does" if deterministic else "what may split k"
            raise ExportError(
                f"{printable(f'{folder}/{name}')} holds entries that {what}, {len(staying)} of "
                f"which would stay, such as {staying[0]}, and here {others} is written; give "
                "another --output, or keep both with --merge"
            )


def _splitting(folder: Path, gpu: str) -> Iterator[tuple[str, list[str]]]:
    """Every file of a GPU with the keys of its entries that split k."""
    for op in SPLITTING_OPS:
        name = op.file_name(gpu, add_inputs=True)
        table = read_table(Path(f"{folder}/{name}"), levels=len(op.levels)) or {}
        leaves = _leaves(table, len(op.levels), ())
        yield name, [key_text(key) for key, leaf in leaves if splits(op, leaf)]


def _leaves(
    table: Mapping[str, Any], levels: int, keys: tuple[str, ...]
) -> Iterator[tuple[tuple[str, ...], Mapping[str, Any]]]:
    for key, below in table.items():
        if not isinstance(below, dict):
            continue
        if levels == 1:
            yield (*keys, key), below
        else:
            yield from _leaves(below, levels - 1, (*keys, key))


def _deterministic(entries: Entries) -> Iterator[tuple[str, list[str]]]:
    """Every file with the keys of its entries that were chosen with ``--deterministic``."""
    for name, of_file in entries.items():
        yield name, [text for text, entry in of_file.items() if _is_deterministic(entry)]


def _is_deterministic(entry: Mapping[str, Any]) -> bool:
    environment = entry.get("environment")
    return isinstance(environment, dict) and environment.get("deterministic") is True
