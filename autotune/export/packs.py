"""Packs: what a person sends, so that the entries of another GPU come into the collection.

A pack is a zip archive of one GPU's tuned files, their provenance, and thinned measurements. It is
written from entries that were read with care, so that nothing private is in it: no path, no host,
no user. It is read as something that a stranger sent.
"""

from __future__ import annotations

import json
import zipfile
import zlib
from dataclasses import dataclass
from pathlib import Path

from autotune.errors import ExportError, InputError, printable
from autotune.export.collection import Tuned, read_tuned, texts_of
from autotune.export.names import PROVENANCE_SUFFIX
from autotune.export.provenance import MOST_BYTES
from autotune.files import write_errors

#: The thinned measurements, a recording as ``autotune learn`` writes it.
MEASUREMENTS = "measurements.jsonl.gz"

#: Seven files of vLLM's, the provenance and the measurements.
_MOST_FILES = 9

#: The day of every file in a pack: the same entries give the same bytes.
_NO_DAY = (1980, 1, 1, 0, 0, 0)

_ADVICE = "free the place, or name another file with -o"


@dataclass(frozen=True, slots=True, kw_only=True)
class Pack:
    """What a pack holds.

    Attributes:
        gpu: The GPU's name.
        tuned: The entries.
        measurements: The recording of thinned measurements; None where there is none.
    """

    gpu: str
    tuned: Tuned
    measurements: bytes | None


def write_pack(tuned: Tuned, path: Path, measurements: bytes | None) -> None:
    """Write a pack.

    Args:
        tuned: The entries of one GPU, at least one.
        path: The file to write.
        measurements: A recording of thinned measurements; None for none.

    Raises:
        ExportError: The file cannot be written.
    """
    contents = {name: text.encode() for name, text in texts_of(tuned).items()}
    if measurements is not None:
        contents[MEASUREMENTS] = measurements
    with (
        write_errors(path, ExportError, advice=_ADVICE),
        zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive,
    ):
        for name, content in contents.items():
            archive.writestr(zipfile.ZipInfo(name, _NO_DAY), content, zipfile.ZIP_DEFLATED)


def read_pack(path: Path) -> Pack:
    """Read a pack from somebody.

    Raises:
        InputError: It is no pack, is far too large, holds another file than a pack has, or its
            files do not say what their provenance says.
    """
    try:
        contents = _contents(path)
    except _BROKEN as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise InputError(
            f"{printable(str(path))} is no pack: {printable(reason)}; ask for one that "
            "autotune configs --pack wrote"
        ) from error
    provenance = [name for name in contents if name.endswith(PROVENANCE_SUFFIX)]
    if len(provenance) != 1:
        raise _refused(path, f"it has {len(provenance)} provenance files: one GPU's has one")
    measurements = contents.pop(MEASUREMENTS, None)
    try:
        content = json.loads(contents[provenance[0]])
    except (ValueError, RecursionError) as error:
        raise _refused(path, f"{printable(provenance[0])} is no JSON: {error}") from error
    tuned = read_tuned(path / provenance[0], content)
    if not tuned:
        raise _refused(path, "it holds no entry")
    texts = texts_of(tuned)
    for name in sorted({*texts, *contents} - set(provenance)):
        if name not in texts or contents.get(name) != texts[name].encode():
            raise _refused(path, f"{printable(name)} is not what its provenance says")
    if measurements is not None:
        _refuse_large(path, measurements)
    first = next(iter(next(iter(tuned.values())).values()))
    return Pack(gpu=first.environment.gpu, tuned=tuned, measurements=measurements)


#: What a broken, an encrypted or a strange archive raises.
_BROKEN = (
    *(OSError, EOFError, ValueError, RuntimeError),
    *(zipfile.BadZipFile, zlib.error),
)


def _contents(path: Path) -> dict[str, bytes]:
    """The files of an archive, none larger than a pack's."""
    if path.is_dir():
        raise IsADirectoryError(21, "it is a folder")
    if not path.is_file():
        raise FileNotFoundError(2, "there is no such file")
    with zipfile.ZipFile(path) as archive:
        files = archive.infolist()
        if len(files) > _MOST_FILES or sum(file.file_size for file in files) > MOST_BYTES:
            raise zipfile.BadZipFile(f"it unpacks to more than {_MOST_FILES} files or 64 MiB")
        return {file.filename: _bounded(archive, file) for file in files}


def _bounded(archive: zipfile.ZipFile, file: zipfile.ZipInfo) -> bytes:
    with archive.open(file) as opened:
        return opened.read(MOST_BYTES + 1)


def _refuse_large(path: Path, measurements: bytes) -> None:
    """Refuse compressed measurements that are broken, or that unpack to very much.

    Raises:
        InputError: They are.
    """
    unpacking = zlib.decompressobj(wbits=zlib.MAX_WBITS | 16)
    try:
        size = len(unpacking.decompress(measurements, MOST_BYTES + 1))
    except zlib.error as error:
        raise _refused(path, f"{MEASUREMENTS} is broken: {error}") from error
    if size > MOST_BYTES or not unpacking.eof or unpacking.unused_data:
        raise _refused(path, f"{MEASUREMENTS} is cut off, or unpacks to more than 64 MiB")


def _refused(path: Path, reason: str) -> InputError:
    return InputError(
        f"{printable(str(path))} cannot be taken: {reason}; ask for one that autotune configs "
        "--pack wrote"
    )
