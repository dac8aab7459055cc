"""Output whose reader may go away: ``autotune run | head``, or a terminal that is closed."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable
from contextlib import suppress
from typing import IO

from rich.console import Console


class PipedConsole(Console):
    """A console that knows what to do when nobody reads it any more.

    Where a terminal is gone, and on standard error, what is printed from then on is dropped. A pipe
    that is closed ends the command, as users of ``head`` expect, unless ``outlive_reader`` was
    called.
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
        with suppress(OSError, ValueError):  # not a file of the system's
            is_terminal = self.file.isatty()
            nowhere = os.open(os.devnull, os.O_WRONLY)
            os.dup2(nowhere, self.file.fileno())  # Python writes what is left there at its end
            os.close(nowhere)
            if is_terminal:
                return
        if self._on_lost is not None:
            self._on_lost()
        elif not self.stderr:
            raise SystemExit(1)


class _Stream:
    """A file for which a terminal that is gone is a closed pipe."""

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
    return BrokenPipeError(*error.args) if error.errno == errno.EIO else error
