"""The tuned files that come with autotune: one folder a GPU, as vLLM reads it.

Beside vLLM's files a folder holds their provenance, compressed, since vLLM never reads it. vLLM's
files hold what the provenance says, and nothing else.
"""

from __future__ import annotations

import functools
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from autotune.errors import ExportError, InputError, printable
from autotune.export.names import PACKED
from autotune.export.nested import as_text, put_leaf, sorted_table, unusable
from autotune.export.provenance import (
    as_content,
    entries_in,
    key_in,
    provenance_name,
    read_content,
)
from autotune.export.tuned_entry import TunedEntry
from autotune.files import locked, replace_files
from autotune.launch.config import KernelConfig
from autotune.launch.environment import Environment
from autotune.launch.op import gpu_file_prefix, key_text
from autotune.launch.release import is_newer
from autotune.launch.shape import KernelShape

#: Where the collection lies in the package.
COLLECTION = Path(__file__).parents[1] / "configs"

#: By a tuned file's name and a key's text, the entry.
Tuned = dict[str, dict[str, TunedEntry]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Collected:
    """What the collection holds for one GPU.

    Attributes:
        gpu: The GPU's name as ``torch.cuda.get_device_name()`` gives it.
        folder: The folder that ``VLLM_TUNED_CONFIG_FOLDER`` may name.
        tuned: The entries.
    """

    gpu: str
    folder: Path
    tuned: Tuned

    @property
    def entries(self) -> list[TunedEntry]:
        """All entries."""
        return [entry for of_file in self.tuned.values() for entry in of_file.values()]

    @property
    def by_shape(self) -> Mapping[KernelShape, TunedEntry]:
        """The entry of every shape that was tuned."""
        return {entry.shape: entry for entry in self.entries}


def collected(root: Path = COLLECTION) -> list[Collected]:
    """What the collection holds, by GPU.

    Raises:
        ExportError: A file of it is broken.
    """
    folders = sorted(path for path in root.glob("*") if path.is_dir())
    return [_read(folder) for folder in folders]


def collected_for(gpu: str, root: Path = COLLECTION) -> Collected:
    """What the collection holds for a GPU.

    Args:
        gpu: Its name, or its part of the files' names.
        root: The collection.

    Raises:
        InputError: The collection has nothing for this GPU.
    """
    every = collected(root)
    for each in every:
        if gpu_file_prefix(each.gpu) == gpu_file_prefix(gpu):
            return each
    there = ", ".join(each.gpu for each in every) or "no GPU"
    raise InputError(
        f"the collection has nothing for a {printable(gpu)}, only for {there}; tune on that GPU "
        "with autotune run"
    )


def confirmable(environment: Environment) -> Mapping[KernelShape, KernelConfig]:
    """The collection's configurations that were measured on a GPU with a release's kernels.

    Versions of torch, Triton and the driver may differ: the configurations are measured again.
    """
    try:
        found = collected_for(environment.gpu)
    except InputError:
        return {}
    return {
        entry.shape: entry.config
        for entry in found.entries
        if entry.environment.is_like(environment)
        and entry.environment.kernels == environment.kernels
    }


def _read(folder: Path) -> Collected:
    path = folder / f"{provenance_name(folder.name)}{PACKED}"
    tuned = read_tuned(path, read_content(path))
    first = next((entry for of_file in tuned.values() for entry in of_file.values()), None)
    if first is None:
        raise unusable(path, "it holds no entry")
    return Collected(gpu=first.environment.gpu, folder=folder, tuned=tuned)


def read_tuned(path: Path, content: object) -> Tuned:
    """The entries of a provenance file's content.

    Raises:
        ExportError: The content is none of a provenance file, an entry lies at another place than
            its shape has, or the entries are of several GPUs.
    """
    tuned: Tuned = {}
    for name, of_file in entries_in(path, content).items():
        for text, table in of_file.items():
            try:
                entry = TunedEntry.read(table)
            except InputError as error:
                raise unusable(path, f"{printable(name)} at {text}: {error}") from error
            if (name, text) != place_of(entry):
                raise unusable(
                    path,
                    f"{printable(name)} at {text}: vLLM looks this shape of a "
                    f"{entry.environment.gpu} up in {' at '.join(place_of(entry))}",
                )
            tuned.setdefault(name, {})[text] = entry
    gpus = {entry.environment.gpu for of_file in tuned.values() for entry in of_file.values()}
    if len(gpus) > 1:
        raise unusable(path, f"it is of several GPUs: {', '.join(sorted(gpus))}")
    return tuned


def newer(one: TunedEntry, other: TunedEntry) -> TunedEntry:
    """Which of two entries was measured on the later release; of one release on the later day."""
    release, others = one.environment.provider_version, other.environment.provider_version
    if is_newer(release, others) or is_newer(others, release):
        return one if is_newer(release, others) else other
    return one if one.measured_at > other.measured_at else other


def place_of(entry: TunedEntry) -> tuple[str, str]:
    """The file in which vLLM looks an entry up, and its key's text."""
    return entry.shape.file_name(entry.environment.gpu), key_text(entry.shape.lookup_key)


def by_place(entries: Iterable[TunedEntry]) -> Tuned:
    """Entries by file and key; of several at one place the last."""
    tuned: Tuned = {}
    for entry in entries:
        name, text = place_of(entry)
        tuned.setdefault(name, {})[text] = entry
    return tuned


def texts_of(tuned: Tuned) -> dict[str, str]:
    """The text of every file by its name: vLLM's, and their provenance."""
    entries = [entry for of_file in tuned.values() for entry in of_file.values()]
    newest = functools.reduce(newer, entries).environment
    tables: dict[str, dict[str, Any]] = {}
    for name, of_file in sorted(tuned.items()):
        table = tables.setdefault(name, {})
        for text, entry in of_file.items():
            put_leaf(table, key_in(text), entry.config.as_dict())
        tables[name] = sorted_table(table, len(key_in(next(iter(of_file)))))
    provenance = as_content(
        {
            name: {text: one.as_dict() for text, one in those.items()}
            for name, those in tuned.items()
        },
        newest,
    )
    tables[provenance_name(newest.gpu)] = provenance
    return {name: as_text(table) for name, table in tables.items()}


def write_folder(tuned: Tuned, folder: Path) -> tuple[Path, ...]:
    """Write entries as vLLM reads them, with their provenance.

    Args:
        tuned: The entries, at least one.
        folder: Where to write; made if it is not there.

    Returns:
        The files written.

    Raises:
        ExportError: The folder cannot be written, or holds a file of such a name already.
    """
    advice = "free the place, or give another folder with -o"
    texts = {folder / name: text for name, text in texts_of(tuned).items()}
    with locked(folder, advice=advice):
        for path, text in texts.items():
            if path.exists() and not _holds(path, text):
                raise ExportError(
                    f"{printable(str(path))} is there already, and holds something else; "
                    "give another folder with -o"
                )
        replace_files(texts, advice=advice)
    return tuple(texts)


def _holds(path: Path, text: str) -> bool:
    try:
        return path.read_bytes() == text.encode()
    except OSError:
        return False
