"""A process that may hang or die without taking anything else along.

Knows nothing of GPUs: a worker answers one request at a time with the value of a function.
"""

from __future__ import annotations

import contextlib
import ctypes
import multiprocessing
import os
import signal
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from multiprocessing.connection import Connection
from typing import Any

from autotune.errors import AutotuneError, WorkerDied

#: A request goes in, a picklable answer comes out.
Handler = Callable[[Any], Any]

#: How long a process may take to start and import what it needs, in seconds.
START_TIMEOUT_S = 120.0

#: prctl(2): which signal the kernel sends to a process whose parent has died.
_PR_SET_PDEATHSIG = 1


@dataclass(frozen=True, slots=True)
class _Ready:
    """A worker's first message."""


@dataclass(frozen=True, slots=True)
class _Fault:
    """An exception that the handler let escape."""

    message: str


class Worker:
    """A spawned process with a handler in it.

    The process leads a process group of its own, so that what it starts (``ptxas``) ends with it,
    and takes no notice of Ctrl-C, which is its owner's to act on.
    """

    def __init__(self, make_handler: Callable[..., Handler], args: Sequence[object]) -> None:
        """Start the process; ``wait_until_ready`` or the first answer says that it has started.

        Args:
            make_handler: Called once in the process; importable by name.
            args: Its arguments, picklable.
        """
        context = multiprocessing.get_context("spawn")
        self.connection, theirs = context.Pipe()
        self._process = context.Process(
            target=_serve, args=(theirs, make_handler, tuple(args)), daemon=True
        )
        self._process.start()
        theirs.close()
        self._is_ready = False

    @property
    def is_ready(self) -> bool:
        """Whether the handler is known to be made."""
        return self._is_ready

    def wait_until_ready(self) -> None:
        """Wait until the handler is made.

        Raises:
            AutotuneError: The handler could not be made for a reason of its own.
            WorkerDied: The process ended before, or took too long.
        """
        if not self._is_ready:
            self._receive(time.monotonic() + START_TIMEOUT_S)

    def send(self, request: object) -> None:
        """Hand over a request; ``receive`` gets its answer.

        Raises:
            WorkerDied: The process has ended.
        """
        try:
            self.connection.send(request)
        except OSError:
            raise self._death() from None

    def receive(self, timeout_s: float) -> Any:  # noqa: ANN401 - the handler's answer
        """The answer to the oldest request.

        Raises:
            AutotuneError: The handler raised it.
            WorkerDied: The process ended, did not answer in time, or its handler raised another.
        """
        self.wait_until_ready()
        return self._receive(time.monotonic() + timeout_s)

    def kill(self) -> None:
        """End the process and everything that it started."""
        if self._process.pid is not None and self._process.is_alive():
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.killpg(self._process.pid, signal.SIGKILL)
            self._process.kill()  # where it had not come to lead its group yet
        self._process.join()
        self.connection.close()

    def _receive(self, deadline: float) -> Any:  # noqa: ANN401 - the handler's answer
        if not self.connection.poll(max(0.0, deadline - time.monotonic())):
            raise WorkerDied("the process did not answer in time", timed_out=True)
        try:
            answer = self.connection.recv()
        except (EOFError, OSError):
            raise self._death() from None
        if isinstance(answer, _Ready):
            self._is_ready = True
            return None
        if isinstance(answer, AutotuneError):
            raise answer
        if isinstance(answer, _Fault):
            raise WorkerDied(answer.message)
        return answer

    def _death(self) -> WorkerDied:
        self._process.join(timeout=5)
        code = self._process.exitcode
        how = f"signal {signal.Signals(-code).name}" if code and code < 0 else f"exit code {code}"
        return WorkerDied(f"the process ended with {how}")


def one_line(error: BaseException) -> str:
    """The type and the first line of an exception's text."""
    text = str(error).strip()
    return f"{type(error).__name__}: {text.splitlines()[0]}" if text else type(error).__name__


def _serve(
    connection: Connection, make_handler: Callable[..., Handler], args: tuple[object, ...]
) -> None:
    """Body of the process."""
    os.setsid()
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    _die_with_parent()
    _be_silent()
    with contextlib.suppress(EOFError, BrokenPipeError):  # the owner is gone
        try:
            handler = make_handler(*args)
        except AutotuneError as error:  # says all that there is to say
            connection.send(error)
            return
        except Exception as error:  # noqa: BLE001 - told to the owner, whose process this is not
            connection.send(_Fault(one_line(error)))
            return
        connection.send(_Ready())
        while True:
            request = connection.recv()
            try:
                answer = handler(request)
            except AutotuneError as error:
                answer = error
            except Exception as error:  # noqa: BLE001 - told to the owner
                answer = _Fault(one_line(error))
            connection.send(answer)


def _be_silent() -> None:
    """Compilers print pages about what they cannot compile; the reason is in the answer."""
    nowhere = os.open(os.devnull, os.O_WRONLY)
    for stream in (1, 2):  # standard output and standard error, of child processes too
        os.dup2(nowhere, stream)
    os.close(nowhere)


def _die_with_parent() -> None:
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
