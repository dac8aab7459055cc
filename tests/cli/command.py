"""The command as a user types it, in an empty folder: called in this process, or in its own.

Only what has to do with processes needs one of its own: signals, terminals, limits of the system.
It is forked, which is quicker; ``in_a_new_process`` is for what is done before it runs.
"""

from __future__ import annotations

import contextlib
import fcntl
import io
import os
import pty
import struct
import subprocess
import sys
import termios
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from unittest import mock

from autotune.cli import console, main
from tests.forks import Forked, forks
from tests.patience import PATIENCE_S

AUTOTUNE = (sys.executable, "-m", "autotune")


def environment() -> dict[str, str]:
    """The environment of a user whose terminal is wide and without colours."""
    forced = ("FORCE_COLOR", "PY_COLORS", "GITHUB_ACTIONS", "COLUMNS")
    return {k: v for k, v in os.environ.items() if k not in forced} | {"COLUMNS": "250"}


@dataclass(frozen=True, slots=True)
class Ended:
    """How a command ended."""

    code: int
    out: str
    err: str

    def has_failed_in_one_line(self, code: int = 1) -> str:
        """Assert that one line says why the command failed; return it."""
        assert self.code == code, (self.out, self.err)
        lines = self.err.splitlines()
        assert len(lines) == 1, self.err
        assert lines[0].startswith("autotune: ")
        return lines[0]

    def has_refused_its_usage(self) -> str:
        """Assert that the flags were refused; return what was said."""
        assert self.code == 2, (self.out, self.err)
        assert "Usage:" in self.err
        assert "Traceback" not in self.err
        return self.err


@dataclass(frozen=True, slots=True)
class Command:
    """Runs ``autotune`` in one folder."""

    folder: Path

    def __call__(self, *arguments: object) -> Ended:
        """Run it to its end, in this process."""
        out, err = io.StringIO(), io.StringIO()
        console.out.quiet = False  # as in a new process, whatever the last command was told
        before = Path.cwd()
        os.chdir(self.folder)
        try:
            with (
                mock.patch.dict(os.environ, environment(), clear=True),
                mock.patch.object(sys, "argv", ["autotune", *map(str, arguments)]),
                contextlib.redirect_stdout(out),
                contextlib.redirect_stderr(err),
            ):
                code = _exit_code_of(main)
        finally:
            os.chdir(before)
        return Ended(code, out.getvalue(), err.getvalue())

    def in_a_process(
        self,
        *arguments: object,
        before: Callable[[], object] | None = None,
        variables: Mapping[str, str] | None = None,
    ) -> Ended:
        """Run it to its end, in a process of its own.

        Args:
            arguments: What follows ``autotune``.
            before: Called in the new process before the command starts; it can be pickled.
            variables: Environment variables to set beside the usual ones.
        """
        process = self.start(*arguments, before=before, variables=variables)
        out, err = process.communicate(PATIENCE_S)
        return Ended(process.wait(PATIENCE_S), out, err)

    def in_a_new_process(
        self, *arguments: object, variables: Mapping[str, str] | None = None
    ) -> Ended:
        """The same, in a process that imports everything itself."""
        result = subprocess.run(  # noqa: S603 - our own command
            [*AUTOTUNE, *map(str, arguments)],
            cwd=self.folder,
            env=environment() | dict(variables or {}),
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=PATIENCE_S,
            check=False,
        )
        return Ended(result.returncode, result.stdout, result.stderr)

    def start(
        self,
        *arguments: object,
        before: Callable[[], object] | None = None,
        variables: Mapping[str, str] | None = None,
    ) -> Forked:
        """Start it, to be interrupted; the arguments are those of ``in_a_process``."""
        variables = environment() | dict(variables or {})
        return forks().start(arguments, self.folder, variables, before=before)

    def on_a_terminal(self, *arguments: object, columns: int) -> Ended:
        """Run it to its end on a terminal of that many columns; all that it printed is ``out``."""
        ours, theirs = pty.openpty()
        fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 40, columns, 0, 0))
        width = {"COLUMNS": str(columns), "TERM": "xterm-256color"}
        process = subprocess.Popen(  # noqa: S603 - our own command
            [*AUTOTUNE, *map(str, arguments)],
            cwd=self.folder,
            env=environment() | width,
            stdin=theirs,
            stdout=theirs,
            stderr=theirs,
        )
        os.close(theirs)
        text = b""
        with contextlib.suppress(OSError):  # how Linux says that the other side is closed
            while some := os.read(ours, 65_536):
                text += some
        os.close(ours)
        return Ended(process.wait(PATIENCE_S), text.decode(), "")

    def files(self, folder: str = "tuned") -> Mapping[str, bytes]:
        """The content of every file of a folder."""
        return {path.name: path.read_bytes() for path in sorted((self.folder / folder).iterdir())}


def _exit_code_of(command: Callable[[], None]) -> int:
    """What the process would end with."""
    try:
        command()
    except SystemExit as end:
        return int(end.code or 0)
    return 0
