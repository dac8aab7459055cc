"""Files that appear whole or not at all, are read only as files, and places that take them."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import stat
import tempfile
import time
import uuid
from collections.abc import Iterator, Mapping
from pathlib import Path

from autotune.errors import ExportError, InputError, printable

#: Held by whoever changes a folder, and gone when nobody does.
LOCK_NAME = ".autotune.lock"

#: An export holds the lock for seconds, so that dozens that wait for each other end in this time.
_MOST_SECONDS = 300.0

#: Some file systems (Lustre as it is mounted by default, among others) have no locks.
_NO_LOCKS = {errno.ENOSYS, errno.ENOLCK, errno.EOPNOTSUPP, errno.EINVAL}

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
    Temporary files do not stay behind. A path that is a link stays one: what it leads to gets the
    new content.

    Args:
        texts: The new content of each file. Their folders are made where needed.
        advice: What to do if a file cannot be written; the end of the message.

    Raises:
        ExportError: The disk is full, a folder is a file, a permission is missing, or something
            else than a file has the name: a folder, a pipe, a device.
    """
    staged: dict[Path, Path] = {}
    try:
        for path, text in texts.items():
            with write_errors(path, ExportError, advice=advice):
                place = _place(path)
                place.parent.mkdir(parents=True, exist_ok=True)
                # A name that no other process has, in another container either, opened plainly:
                # vLLM may run as another user, so the mode must be what the umask says, which
                # tempfile's 0600 is not.
                staged[place] = place.with_name(f".{place.name}.{uuid.uuid4().hex}.tmp")
                _write(staged[place], text)
        for place, temporary in staged.items():
            with write_errors(place, ExportError, advice=advice):
                temporary.replace(place)
    finally:
        for temporary in staged.values():
            with contextlib.suppress(OSError):
                temporary.unlink(missing_ok=True)


def _place(path: Path) -> Path:
    """Where the file of a path lies, behind all links.

    Raises:
        OSError: Something else than a file lies there, or the links go round in a circle.
    """
    place = Path(os.path.realpath(path))
    try:
        mode = place.stat().st_mode
    except FileNotFoundError:
        return place
    _only_files(mode)
    return place


def _only_files(mode: int) -> None:
    if stat.S_ISDIR(mode):
        raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR))
    if not stat.S_ISREG(mode):
        raise OSError(errno.EINVAL, "it is no file but a pipe or a device")


def _write(path: Path, text: str) -> None:
    with path.open("x", encoding="utf-8", newline="\n") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())  # a rename must not outlive its content after a power cut


def read_file(path: Path) -> str:
    """The text of a file, or of the file that a link leads to; a pipe is not waited for.

    Raises:
        FileNotFoundError: There is nothing under this name.
        OSError: Something else than a file lies there, or it cannot be read.
        ValueError: It is not UTF-8, or no path can be like this one.
    """
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
    except FileNotFoundError:
        if path.is_symlink():
            raise OSError(errno.EINVAL, "it is a link to nothing") from None
        raise
    with open(descriptor, "rb") as file:  # noqa: PTH123 - no path but a descriptor
        _only_files(os.fstat(descriptor).st_mode)
        return file.read().decode("utf-8")


@contextlib.contextmanager
def locked(folder: Path, *, advice: str) -> Iterator[None]:
    """Change a folder alone: others that do the same wait, in other containers and hosts too.

    The kernel's lock on a file in the folder tells them. It ends with its process, however that
    dies, so a lock file that stayed behind holds up nobody. On file systems without locks nobody
    waits.

    Args:
        folder: The folder; made where needed.
        advice: What to do if the folder cannot be written; the end of the message.

    Raises:
        ExportError: The folder cannot be written, or somebody else holds it for minutes.
    """
    path = folder / LOCK_NAME
    with (
        write_errors(path, ExportError, advice=advice),
        contextlib.suppress(FileExistsError),  # a file, which the lock cannot be opened in
    ):
        folder.mkdir(parents=True, exist_ok=True)
    deadline = time.monotonic() + _MOST_SECONDS
    while (descriptor := _locked_file(path, advice=advice)) is None:
        if time.monotonic() > deadline:
            raise ExportError(
                f"{printable(str(folder))} has been in use by another export for "
                f"{_MOST_SECONDS:.0f} s; end that one, and export again"
            )
        time.sleep(0.02)
    try:
        yield
    finally:
        with contextlib.suppress(OSError):
            path.unlink()  # while it is held: who waits for it sees that it is another file now
        os.close(descriptor)


def _locked_file(path: Path, *, advice: str) -> int | None:
    """The descriptor of the lock file, locked; None where somebody else holds it now."""
    with write_errors(path, ExportError, advice=advice):
        descriptor = _open_lock(path)
    try:
        if _lock(descriptor) and _is_still(path, descriptor):
            return descriptor
    except BaseException:
        os.close(descriptor)
        raise
    os.close(descriptor)
    return None


def _open_lock(path: Path) -> int:
    flags = os.O_NONBLOCK | os.O_NOFOLLOW
    try:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | flags, 0o666)
    except PermissionError:  # another user's; it can be locked by who can read it
        descriptor = os.open(path, os.O_RDONLY | flags)
    try:
        _only_files(os.fstat(descriptor).st_mode)
    except OSError:
        os.close(descriptor)
        raise
    return descriptor


def _lock(descriptor: int) -> bool:
    """Whether the file is locked now, or cannot be on this file system."""
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        return error.errno in _NO_LOCKS
    return True


def _is_still(path: Path, descriptor: int) -> bool:
    """Whether the path still names this file, which its last holder may have removed.

    It is opened anew, since a network file system asks its server then.
    """
    try:
        other = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
    except OSError:
        return False
    try:
        return os.path.sameopenfile(other, descriptor)
    finally:
        os.close(other)


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
        raise kind(f"cannot write {printable(str(path))}: {error.strerror}; {advice}") from error
    except ValueError as error:  # no path has such characters
        raise kind(f"cannot write {printable(str(path))}: {error}; {advice}") from error
