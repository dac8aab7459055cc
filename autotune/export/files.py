"""Several files replaced together: all of them are on disk before the first one changes."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator, Mapping
from pathlib import Path

from autotune.errors import ExportError


def replace_files(texts: Mapping[Path, str]) -> None:
    """Write every text to a temporary file beside its path, then rename them in order.

    Nothing is changed where a text cannot be written. Temporary files do not stay behind.

    Args:
        texts: The new content of each file. Their folders are made where needed.

    Raises:
        ExportError: The disk is full, a folder is a file, a permission is missing.
    """
    staged: dict[Path, Path] = {}
    try:
        for path, text in texts.items():
            with _named(path):
                path.parent.mkdir(parents=True, exist_ok=True)
                # A name of this process, opened plainly: vLLM may run as another user, so the mode
                # must be what the umask says, which tempfile's 0600 is not.
                staged[path] = path.with_name(f".{path.name}.{os.getpid()}.tmp")
                _write(staged[path], text)
        for path, temporary in staged.items():
            with _named(path):
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
def _named(path: Path) -> Iterator[None]:
    """Turn the operating system's errors into one that names the path."""
    try:
        yield
    except OSError as error:
        raise ExportError(
            f"cannot write {path}: {error.strerror}; the measurements are kept in the database: "
            "free the place or give another --output, and `autotune export` writes them again"
        ) from error
