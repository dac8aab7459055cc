"""Reading a file: a small one whole, such as a study file or a config, or a trace by lines."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

from autotune.errors import InputError, printable

#: No study file and no config is larger: the largest known has 2 MB. What is larger is something
#: else, such as a model's weights, and would fill the memory.
LARGEST_BYTES = 2**24

#: Bytes of a line. One of a trace has 500, or 2000 with the most slices.
LONGEST_LINE = 2**16


def read_document(path: Path, what: str = "the file") -> str:
    """The text of a file.

    Args:
        path: A regular file, or a link to one. A pipe is not read, since it may never end.
        what: What the file is, as messages name it.

    Raises:
        InputError: There is no such file, it is something else than a file, it cannot be read, it
            is larger than ``LARGEST_BYTES``, or it is not UTF-8.
    """
    name = printable(str(path))
    with _opened(path, what) as file:
        content = file.read(LARGEST_BYTES + 1)
    if len(content) > LARGEST_BYTES:
        raise InputError(f"{name}: larger than the {LARGEST_BYTES} bytes that are read of {what}")
    try:
        return content.decode("utf-8")
    except UnicodeDecodeError as error:
        raise InputError(f"{name}: not UTF-8: {error}; save it as UTF-8") from error


def read_lines(path: Path, what: str) -> Iterator[bytes]:
    """The lines of a file of any length, each with its end.

    Args:
        path: As for ``read_document``.
        what: What the file is, as messages name it.

    Raises:
        InputError: The file cannot be read, or a line is longer than ``LONGEST_LINE``.
    """
    with _opened(path, what) as file:
        number = 0
        while text := file.readline(LONGEST_LINE + 1):
            number += 1
            if len(text) > LONGEST_LINE:
                name = printable(str(path))
                raise InputError(f"{name} line {number}: longer than {LONGEST_LINE} bytes")
            yield text


@contextmanager
def _opened(path: Path, what: str) -> Iterator[BinaryIO]:
    """Open a file; whatever goes wrong in reading it is an ``InputError``."""
    name = printable(str(path))
    try:
        with open(path, "rb", opener=_without_waiting) as file:
            if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
                raise InputError(f"cannot read {what} {name}: not a file but a pipe or a device")
            yield file
    except OSError as error:
        raise InputError(f"cannot read {what} {name}: {error.strerror}; check the path") from error
    except ValueError as error:  # no path has such characters
        raise InputError(f"cannot read {what} {name}: {error}; check the path") from error


def _without_waiting(path: str, flags: int) -> int:
    """Open a file; a pipe that nobody writes to, too, which would otherwise take forever."""
    return os.open(path, flags | os.O_NONBLOCK)


def expanded(path: str) -> Path:
    """A path with ``~`` written out; as it stands where ``~`` names no user."""
    try:
        return Path(path).expanduser()
    except RuntimeError:
        return Path(path)


def is_folder(path: Path) -> bool:
    """Whether there is a folder at a path; False where no path can be like that."""
    return is_there(path) and path.is_dir()


def is_there(path: Path) -> bool:
    """Whether there is something at a path; False where no path can be like that."""
    try:
        path.stat()
    except (OSError, ValueError):
        return False
    return True


def name_of(source: str) -> str:
    """What a model is called: a hub id as it is, of a file its name, or its folder's name.

    Args:
        source: A hub id, a ``config.json`` or one called otherwise, or a folder.
    """
    path = expanded(source)
    if not path.exists():
        return source
    return path.resolve().parent.name if path.name == "config.json" else path.stem
