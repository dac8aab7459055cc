"""What ``configs --pack`` sends: a database's or a folder's entries, and what is known of them."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from autotune.errors import InputError, printable

if TYPE_CHECKING:
    from autotune.cli.shape_flags import ShapeFlags
    from autotune.export.collection import Tuned
    from autotune.export.tuned_entry import TunedEntry, TunedFor
    from autotune.launch.environment import Environment
    from autotune.launch.shape import KernelShape

#: How the files of SQLite databases end.
_DATABASES = (".db", ".sqlite", ".sqlite3")


@dataclass(frozen=True, slots=True)
class Packed:
    """What was packed.

    Attributes:
        gpu: The GPU.
        entries: How many entries.
        measurements: How many measurements.
        models: The names of models in the pack.
    """

    gpu: str
    entries: int
    measurements: int
    models: tuple[str, ...]


def pack(source: str, flags: ShapeFlags, gpu: str | None, output: Path) -> Packed:
    """Write a pack, and read it as whoever gets it will.

    Args:
        source: A folder that autotune wrote, or a database, by file or URL.
        flags: The model that was tuned, if it is to be named; only its entries are packed.
        gpu: Which GPU's entries, where there are several.
        output: The file to write.

    Raises:
        InputError: The source cannot be used, holds nothing measured for the GPU or the model, or
            the file cannot be written.
    """
    from autotune.errors import ExportError
    from autotune.export.packs import read_pack, write_pack
    from autotune.files import try_file

    try_file(output, ExportError, advice="free the place, or name another file with -o")
    label = _labels(flags)
    with tempfile.TemporaryDirectory() as name:
        room, measurements, count = Path(name), None, 0
        if Path(source).is_dir():
            tuned = _of_folder(Path(source), gpu)
            chosen = _labelled(tuned, label, {})
        else:
            url = database_url(source)
            by_shape, days = _written(url, gpu, label, room)
            chosen = _labelled(by_shape, label, days)
            if chosen:
                measurements, count = _learned(url, _environment_of(chosen), room)
        if not chosen:
            raise InputError(f"{printable(source)} holds no entry of what the flags name")
        write_pack(chosen, output, measurements)
    read_pack(output)
    entries = [entry for of_file in chosen.values() for entry in of_file.values()]
    return Packed(
        gpu=entries[0].environment.gpu,
        entries=len(entries),
        measurements=count,
        models=tuple(dict.fromkeys(each.model for one in entries for each in one.tuned_for)),
    )


def database_url(source: str) -> str:
    """The URL of a database that is given by its file or its URL."""
    is_file = "://" not in source and Path(source).suffix in _DATABASES
    if "://" not in source and not is_file:
        raise InputError(
            f"{printable(source)} is neither a folder that autotune wrote nor a database: give "
            "such a folder, a file that ends with .db, or a URL"
        )
    return f"sqlite:///{source}" if is_file else source


# ------------------------------------------------------------------ the model


#: By a shape without its batch size, the model that has it.
_Labels = Mapping["KernelShape", "TunedFor"]


def _labels(flags: ShapeFlags) -> _Labels | None:
    """The model's layers; None where no model is named: every entry is packed then."""
    from autotune.export.tuned_entry import TunedFor
    from autotune.plan.documents import name_of

    if not flags.given:
        return None
    if flags.config is None:
        raise InputError(
            "--pack takes the model's flags with --for MODEL; add it, or leave them out"
        )
    model, size, plan = name_of(flags.config), int(flags.tensor_parallel or 1), flags.plan()
    return {
        shape.without_batch: TunedFor.read(
            {"model": model, "tensor_parallel": size, "layers": layers}
        )
        for shape, layers in plan.layers.items()
    }


def _labelled(tuned: Tuned, labels: _Labels | None, days: Mapping[KernelShape, str]) -> Tuned:
    from autotune.export.collection import by_place

    chosen: list[TunedEntry] = []
    for of_file in tuned.values():
        for entry in of_file.values():
            kind = entry.shape.without_batch
            if labels is None or kind in labels:
                label = None if labels is None else labels[kind]
                chosen.append(entry.labelled(label, days.get(entry.shape, "")))
    return by_place(chosen)


# ------------------------------------------------------------------ the source


def _of_folder(folder: Path, gpu: str | None) -> Tuned:
    """The entries of a folder as its provenance knows them, after a check.

    Those that were edited by hand are left out.

    Raises:
        InputError: There are none, or of several GPUs, or the check finds an error.
    """
    from autotune.export.check import check
    from autotune.export.collection import read_tuned
    from autotune.export.names import parse_name, provenance_prefixes
    from autotune.export.nested import read_table
    from autotune.export.provenance import entries_in, provenance_in, read_content, still_true
    from autotune.launch.op import gpu_file_prefix

    prefixes = provenance_prefixes(folder)
    if gpu is not None:
        prefixes = [each for each in prefixes if each == gpu_file_prefix(gpu)]
    if len(prefixes) != 1:
        raise InputError(
            f"{printable(str(folder))} has provenance files of {len(prefixes)} GPUs"
            f"{f' called {printable(gpu)}' if gpu else ''}, and a pack is of one: "
            "give a folder that autotune wrote, and --gpu if it holds several"
        )
    for finding in check(folder, {prefixes[0]: ()}).findings:
        if finding.is_error:
            raise InputError(f"{printable(str(folder))} is not sound: {finding}")
    path = provenance_in(folder, prefixes[0])
    content = read_content(path)
    entries = entries_in(path, content)
    if not isinstance(content, dict) or not any(entries.values()):
        raise InputError(f"{printable(str(path))} names no entry: give a folder that was tuned")
    true = {
        name: still_true(of_file, read_table(folder / name, levels=len(parsed.op.levels)) or {})
        for name, of_file in entries.items()
        if (parsed := parse_name(name)) is not None
    }
    return read_tuned(path, content | {"entries": true})


def _written(
    url: str, gpu: str | None, labels: _Labels | None, room: Path
) -> tuple[Tuned, Mapping[KernelShape, str]]:
    """What a database would export, and the day on which each shape was measured.

    Of a row between tuned ones nothing was measured but the comparison that it was chosen by. Its
    day is the last one on which its kernel was measured.

    Raises:
        InputError: The database holds nothing for the GPU, or for several GPUs.
    """
    from autotune.cli.sources import selections_in
    from autotune.export import VllmExporter
    from autotune.store import Store, overview

    stored = [
        (environment, [one for one in those if labels is None or one.shape.without_batch in labels])
        for environment, those in selections_in(url)
        if environment.provider == "vllm"
        and gpu in (None, environment.gpu)
        # A pack holds the fastest; what was chosen with --deterministic is kept beside that.
        and not environment.deterministic
    ]
    _one_gpu([environment for environment, _ in stored], gpu)
    for environment, selections in stored:
        VllmExporter().export(selections, environment, room / "tuned", merge=False)
    with closing(Store(url, read_only=True)) as store:
        measured = {
            each.shape: each.last_at.date().isoformat()
            for each in overview(store).studies
            if each.last_at is not None
        }
    last: dict[KernelShape, str] = {}
    for shape, day in measured.items():
        last[shape.without_batch] = max(day, last.get(shape.without_batch, ""))
    chosen = [one.shape for _, selections in stored for one in selections]
    days = {shape: measured.get(shape) or last.get(shape.without_batch, "") for shape in chosen}
    return (_of_folder(room / "tuned", None) if chosen else {}), days


def _one_gpu(environments: list[Environment], gpu: str | None) -> None:
    gpus = dict.fromkeys(environment.gpu for environment in environments)
    if not gpus:
        raise InputError(
            "the database holds nothing that was tuned on vLLM's kernels without --deterministic"
            f"{f' on a {printable(gpu)}' if gpu else ''}; tune there with --kernels vllm"
        )
    if len(gpus) > 1:
        raise InputError(
            f"a pack is of one GPU, and the database holds {', '.join(gpus)}; give one with --gpu"
        )


def _environment_of(tuned: Tuned) -> Environment:
    """Where one of the entries was measured."""
    return next(iter(next(iter(tuned.values())).values())).environment


def _learned(url: str, like: Environment, room: Path) -> tuple[bytes, int]:
    """The thinned measurements of a database, and how many there are."""
    from autotune.export.packs import MEASUREMENTS
    from autotune.search.learn import learn

    path = room / MEASUREMENTS
    kept = learn([url], path, like=like)
    return path.read_bytes(), sum(kept.values())
