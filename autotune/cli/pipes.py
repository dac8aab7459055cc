"""Output whose reader may go away, such as ``autotune run | head``, or whose disk may be full."""

from __future__ import annotations

import errno
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import IO

from rich.console import Console

#: What systems say of a disk, a quota or a file that takes no more.
_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


@contextmanager
def full_disk_in_one_line() -> Iterator[None]:
    """End the program with one line where standard output, or another file, takes no more.

    Raises:
        SystemExit: So it is.
    """
    try:
        yield
    except OSError as error:
        if error.errno not in _FULL:
            raise
        _say_full(error)
        _drop(sys.stdout)
        raise SystemExit(1) from None


def _say_full(error: OSError) -> None:
    with suppress(OSError):
        print(f"autotune: the output cannot be written: {error.strerror}", file=sys.stderr)  # noqa: T201 - no console here


def _drop(file: IO[str]) -> None:
    """Let what is printed to a file go nowhere: Python writes what is left there at its end."""
    with suppress(OSError, ValueError):  # not a file of the system's
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, file.fileno())
        os.close(nowhere)


class PipedConsole(Console):
    """A console that knows what to do when nobody reads it any more, or the disk is full.

    Where a terminal is gone, and on standard error, what is printed from then on is dropped. A pipe
    that is closed, or a full disk, ends the command, as users of ``head`` expect, unless
    ``outlive_reader`` was called.
    """

    _on_lost: Callable[[], None] | None = None

    def outlive_reader(self, on_lost: Callable[[], None]) -> None:
        """Go on without a reader, for commands whose work is not what they print.

        Args:
            on_lost: Called once, when the reader has gone.
        """
        self._on_lost = on_lost

    @property
    def file(self) -> IO[str]:
        """Where to print; raises ``BrokenPipeError`` too where a terminal is gone."""
        return _Stream(super().file)  # type: ignore[return-value]  # the rest is the file's own

    @file.setter
    def file(self, new_file: IO[str]) -> None:
        Console.file.fset(self, new_file)  # type: ignore[attr-defined]  # a property's own setter

    def on_broken_pipe(self) -> None:
        """Drop what is printed from now on, or end the command.

        Raises:
            SystemExit: A pipe was closed, and what it read was all that the command does.
        """
        if self.quiet:
            return
        self.quiet = True
        is_terminal = False
        with suppress(OSError, ValueError):  # not a file of the system's
            is_terminal = self.file.isatty()
        _drop(self.file)
        if is_terminal:
            return
        if self._on_lost is not None:
            self._on_lost()
        elif not self.stderr:
            raise SystemExit(1)


class _Stream:
    """A file for which a terminal that is gone, and a full disk, is a closed pipe."""

    def __init__(self, file: IO[str]) -> None:
        self._file = file

    def __getattr__(self, name: str) -> object:
        return getattr(self._file, name)

    def write(self, text: str) -> int:
        try:
            return self._file.write(text)
        except OSError as error:
            raise _as_broken_pipe(error) from None

    def flush(self) -> None:
        try:
            self._file.flush()
        except OSError as error:
            raise _as_broken_pipe(error) from None


def _as_broken_pipe(error: OSError) -> OSError:
    """EIO is what Linux says of a terminal that is gone."""
    if error.errno in _FULL:
        _say_full(error)
    return BrokenPipeError(*error.args) if error.errno in (errno.EIO, *_FULL) else error
