"""The JSON files that vLLM loads from ``VLLM_TUNED_CONFIG_FOLDER``."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from autotune.choose.selection import Selection
from autotune.errors import ExportError
from autotune.export.lookup import look_up
from autotune.export.mixture import refuse_mixed
from autotune.export.moe_files import couple_in
from autotune.export.nested import as_text, put_leaf, read_table, sorted_table, unusable
from autotune.export.provenance import (
    Entries,
    as_content,
    entry_of,
    provenance_in,
    provenance_name,
    read_entries,
    still_true,
)
from autotune.files import locked, replace_files
from autotune.launch.environment import Environment
from autotune.launch.op import LookupKey, key_text
from autotune.launch.shape import KernelShape

#: By a tuned file's name and a key, what goes there.
_Plan = dict[str, dict[LookupKey, Selection]]

#: What to do where a file cannot be written.
_ADVICE = (
    "the measurements are kept in the database: free the place or give another --output, and "
    "`autotune export` writes them again"
)


class VllmExporter:
    """Writes one file per op, and a provenance file that says where each entry comes from.

    New entries are added to a file that the provenance lists. autotune did not write the other
    files: they are added to only if the caller says ``merge``.

    Exports into one folder wait for each other. A file that is a link stays one: what it leads to
    gets the entries.

    The ops of a MoE layer must share one ``block_m`` in the folder. It is chosen here again, for
    every caller, from the samples that the selections hold.
    """

    def export(
        self,
        selections: Iterable[Selection],
        environment: Environment,
        folder: Path,
        *,
        merge: bool,
    ) -> tuple[Path, ...]:
        """Write the selections, then look every one of them up again the way vLLM will.

        Entries of other shapes that are there already stay. The same selections twice give the
        same bytes.

        Args:
            selections: The chosen configurations; if a shape comes twice, the later one counts.
            environment: Where they were measured; its GPU names the files.
            folder: Where to write; made if it is not there.
            merge: Whether to add to files that autotune did not write, and to deterministic
                entries those that are not, or the other way round.

        Returns:
            The files written.

        Raises:
            ExportError: The folder cannot be written, or holds a file that autotune did not write
                and ``merge`` is false, or one that is broken, or a MoE layer would have two
                ``block_m``, or entries of the other kind would stay; nothing is written then. Or
                the look-up finds something else than was written.
        """
        plan = _by_place(selections, environment.gpu)
        if not plan:
            return ()
        for name in (provenance_name(environment.gpu), *plan):
            _inside(folder, name)
        with locked(folder, advice=_ADVICE):
            return _export(plan, environment, folder, merge=merge)

    def refuse_foreign(
        self,
        shapes: Iterable[KernelShape],
        gpu: str,
        folder: Path,
        *,
        merge: bool,
        deterministic: bool = False,
    ) -> None:
        """Refuse what ``export`` would refuse in a folder for these shapes, writing nothing.

        Args:
            shapes: What is going to be exported.
            gpu: Names the files.
            folder: Where they are going to be written.
            merge: Whether to add to files that autotune did not write.
            deterministic: Whether what is going to be exported never splits k.

        Raises:
            ExportError: A file there is broken, or ``merge`` is false and autotune did not write
                it, or entries of the other kind would stay.
        """
        entries = _entries(folder, gpu, merge=merge)
        keys: dict[str, set[LookupKey]] = {}
        for shape in shapes:
            keys.setdefault(shape.file_name(gpu), set()).add(shape.lookup_key)
        for name, of_file in keys.items():
            count = len(next(iter(of_file)))
            _table(_inside(folder, name), levels=count, listed=name in entries or merge)
        if not merge:
            writes = {name: set(map(key_text, of_file)) for name, of_file in keys.items()}
            refuse_mixed(folder, gpu, writes, entries, deterministic=deterministic)


def _entries(folder: Path, gpu: str, *, merge: bool) -> Entries:
    """What a folder's provenance says; compressed, as in autotune's collection, only to merge."""
    name = provenance_in(folder, gpu).name if merge else provenance_name(gpu)
    return read_entries(_inside(folder, name))


def _export(
    plan: _Plan, environment: Environment, folder: Path, *, merge: bool
) -> tuple[Path, ...]:
    """Add the selections to what the folder holds now, which nobody else changes meanwhile."""
    provenance = _inside(folder, provenance_name(environment.gpu))
    entries = _entries(folder, environment.gpu, merge=merge)
    tables = {
        name: _table(_inside(folder, name), levels=_levels(place), listed=name in entries or merge)
        for name, place in plan.items()
    }
    if not merge:
        writes = {name: set(map(key_text, place)) for name, place in plan.items()}
        gpu, kind = environment.gpu, environment.deterministic
        refuse_mixed(folder, gpu, writes, entries, deterministic=kind)
    every = [one for place in plan.values() for one in place.values()]
    plan = _by_place(
        couple_in(folder, environment.gpu, every, tables=tables, entries=entries),
        environment.gpu,
    )
    _add(plan, environment, tables=tables, entries=entries)
    # The provenance is renamed first: if the renames are cut short, the next export still knows
    # autotune's files, and drops the provenance of entries that are not there.
    contents = {provenance: as_content(entries, environment)}
    for name in sorted(plan):
        contents[_inside(folder, name)] = sorted_table(tables[name], _levels(plan[name]))
    texts = {path: _text(path, content) for path, content in contents.items()}
    replace_files(texts, advice=_ADVICE)
    _verify(plan, folder)
    return (*list(texts)[1:], provenance)


def _text(path: Path, content: dict[str, Any]) -> str:
    """A file's new text.

    Raises:
        ExportError: The file holds something already that JSON does not have, or nests too deep.
    """
    try:
        return as_text(content)
    except (ValueError, RecursionError) as error:
        raise unusable(path, f"what it holds cannot be written again: {error}") from error


def _by_place(selections: Iterable[Selection], gpu: str) -> _Plan:
    """The selections by file and look-up key.

    Raises:
        ExportError: Two shapes have one place, or a configuration lacks a parameter of its op.
    """
    plan: _Plan = {}
    for selection in selections:
        shape = selection.shape
        if tuple(selection.config.as_dict()) != shape.op.parameters:
            raise ExportError(
                f"a configuration of {shape.op.value} {shape.label} must have "
                f"{', '.join(shape.op.parameters)}: got {selection.config.as_dict()}; tune it again"
            )
        place = plan.setdefault(shape.file_name(gpu), {})
        other = place.setdefault(shape.lookup_key, selection).shape
        if other != shape:
            raise ExportError(
                f"two shapes share the entry {key_text(shape.lookup_key)} of "
                f"{shape.file_name(gpu)}: {other.label} and {shape.label}; "
                "export them to two folders, each with --output"
            )
        place[shape.lookup_key] = selection
    return plan


def _inside(folder: Path, name: str) -> Path:
    """The path of a file; a ``/`` in a GPU's name separates folders, as it does for vLLM.

    Raises:
        ExportError: The path would lie outside the folder, or could not be printed.
    """
    path = Path(f"{folder}/{name}")
    if ".." in Path(name).parts or not name.isprintable():
        raise ExportError(
            f"a GPU's name must not lead out of {folder}: got {name!r}; correct it in the recording"
        )
    return path


def _levels(place: Mapping[LookupKey, Selection]) -> int:
    """The number of levels of keys above the entries of a file, all of which are one op's."""
    return len(next(iter(place)))


def _table(path: Path, *, levels: int, listed: bool) -> dict[str, Any]:
    """What a file holds now; empty where there is no such file.

    Args:
        path: The file.
        levels: Number of levels of keys above its entries.
        listed: Whether autotune may add to it.

    Raises:
        ExportError: The file is broken, or autotune may not add to it.
    """
    table = read_table(path, levels=levels)
    if table is None:
        return {}
    if not listed:
        raise ExportError(
            f"{path} is there, and autotune did not write it; "
            "keep its other entries with --merge, or give another --output"
        )
    return table


def _add(
    plan: _Plan, environment: Environment, *, tables: Mapping[str, dict[str, Any]], entries: Entries
) -> None:
    """Put the selections into the tables and the provenance's entries, in place."""
    for name, place in plan.items():
        entries[name] = still_true(entries.get(name, {}), tables[name])
        for key, selection in place.items():
            put_leaf(tables[name], key, selection.config.as_dict())
            entries[name][key_text(key)] = entry_of(selection, environment)


def _verify(plan: _Plan, folder: Path) -> None:
    """Look up every selection in the files on disk, as vLLM will.

    Raises:
        ExportError: The look-up finds another entry, or none.
    """
    for name, place in plan.items():
        path = _inside(folder, name)
        table = read_table(path, levels=_levels(place)) or {}
        for key, selection in place.items():
            found = look_up(table, key)
            if found.path != key or found.leaf != selection.config.as_dict():
                raise ExportError(
                    f"{path} was changed while it was written: vLLM would find "
                    f"{key_text(found.path)} {found.leaf} for {key_text(key)}; export again"
                )
