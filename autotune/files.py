"""Files that appear under their names only when they are whole."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator, Mapping
from pathlib import Path

from autotune.errors import ExportError, InputError


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
