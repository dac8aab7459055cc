"""Files that appear under their names only when they are whole, and places that can take them."""

from __future__ import annotations

import contextlib
import errno
import os
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path

from autotune.errors import ExportError, InputError

#: Bytes that are written to try a place: a full disk may still take a few.
_TRIED_BYTES = 65_536


def try_folder(folder: Path, kind: type[InputError], *, advice: str) -> None:
    """Refuse a folder that files cannot be written to, before the work that they come from.

    A file is written there and deleted. A folder that is missing is not made: the folder in which
    it would be made is tried.

    Args:
        folder: Where files will be written.
        kind: The error to raise.
        advice: What to do; the end of the message.

    Raises:
        InputError: An error of this kind: it is no folder, a permission is missing, the disk is
            full.
    """
    there = folder
    while not os.path.lexists(there) and there != there.parent:
        there = there.parent
    with write_errors(folder, kind, advice=advice):
        if not there.is_dir():
            raise NotADirectoryError(errno.ENOTDIR, f"{there} is no folder")
        _try_writing(there)


def try_file(path: Path, kind: type[InputError], *, advice: str) -> None:
    """Refuse a file that cannot be written, before the work that it comes from; see ``try_folder``.

    Args:
        path: The file; one that is there will be replaced. Its folder must be there.
        kind: The error to raise.
        advice: What to do; the end of the message.

    Raises:
        InputError: An error of this kind: it is a folder or a device, or its folder is missing or
            cannot be written.
    """
    with write_errors(path, kind, advice=advice):
        if path.is_dir():
            raise IsADirectoryError(errno.EISDIR, "it is a folder")
        if path.exists() and not path.is_file():
            raise OSError(errno.EINVAL, "it is a device or a pipe, which would be replaced")
        if not path.parent.exists():
            raise FileNotFoundError(errno.ENOENT, f"there is no folder {path.parent}")
        _try_writing(path.parent)


def _try_writing(folder: Path) -> None:
    """Write a file without a name: it is gone when it is closed, even if the process is killed."""
    with tempfile.TemporaryFile(dir=folder) as file:
        file.write(bytes(_TRIED_BYTES))
        file.flush()
        os.fsync(file.fileno())


def replace_files(texts: Mapping[Path, str], *, advice: str) -> None:
    """Write every text to a temporary file beside its path, then rename them in order.

    All of them are on disk before the first file changes: if one cannot be written, none changes.
    Temporary files do not stay behind.

    Args:
        texts: The new content of each file. Their folders are made where needed.
        advice: What to do if a file cannot be written; the end of the message.

    Raises:
        ExportError: The disk is full, a folder is a file, a permission is missing.
    """
    staged: dict[Path, Path] = {}
    try:
        for path, text in texts.items():
            with write_errors(path, ExportError, advice=advice):
                path.parent.mkdir(parents=True, exist_ok=True)
                # A name of this process, opened plainly: vLLM may run as another user, so the mode
                # must be what the umask says, which tempfile's 0600 is not.
                staged[path] = path.with_name(f".{path.name}.{os.getpid()}.tmp")
                _write(staged[path], text)
        for path, temporary in staged.items():
            with write_errors(path, ExportError, advice=advice):
                temporary.replace(path)
    finally:
        for temporary in staged.values():
            with contextlib.suppress(OSError):
                temporary.unlink(missing_ok=True)


def _write(path: Path, text: str) -> None:
    with path.open("w", encoding="utf-8", newline="\n") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())  # a rename must not outlive its content after a power cut


@contextlib.contextmanager
def write_errors(path: Path, kind: type[InputError], *, advice: str) -> Iterator[None]:
    """Turn the operating system's errors into one that names the path and says what to do.

    Args:
        path: The file that is written.
        kind: The error to raise.
        advice: What to do; the end of the message.

    Raises:
        InputError: An error of this kind: the operating system refused to write.
    """
    try:
        yield
    except OSError as error:
        raise kind(f"cannot write {path}: {error.strerror}; {advice}") from error
