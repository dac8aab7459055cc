"""A process that may hang or die without taking anything else along.

A worker calls a function for one request at a time and sends back the value. It knows nothing of
GPUs.
"""

from __future__ import annotations

import atexit
import contextlib
import ctypes
import multiprocessing
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from multiprocessing import forkserver, resource_tracker
from multiprocessing.connection import Connection, wait
from types import MappingProxyType
from typing import Any

from autotune.errors import AutotuneError, WorkerDied

#: Takes a request and returns its answer; both can be pickled.
Handler = Callable[[Any], Any]

#: How long a process may take to start and import what it needs, in seconds.
START_TIMEOUT_S = 120.0

#: How processes start that never touch the GPU: forked from one that has imported what they need
#: (``prepare``), where there is such a thing. With an import of torch and vLLM in each of nineteen
#: processes the first measurement came 10 s later (H100, 16 cores).
_FORKED = "forkserver" if "forkserver" in multiprocessing.get_all_start_methods() else "spawn"

#: The environment variable that tells ``preloaded`` whose kernels to import.
PREPARED = "AUTOTUNE_PREPARED"

#: prctl(2): which signal the kernel sends to a process whose parent has died.
_PR_SET_PDEATHSIG = 1


#: How long the end of a killed process is waited for, seconds. Without its GPU it may never end.
_LONGEST_END_S = 30.0

#: Starts processes for threads that end before them: Linux ends a process with the thread that has
#: started it (``leave_to_owner``).
_STARTER = ThreadPoolExecutor(1, thread_name_prefix="worker-starter")

#: Signals that a terminal or a scheduler sends to all processes of a run.
_FOR_THE_OWNER = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


@dataclass(frozen=True, slots=True)
class _Ready:
    """A worker's first message."""


@dataclass(frozen=True, slots=True)
class _Fault:
    """An exception that the handler let escape."""

    message: str


def prepare(provider: str) -> None:
    """Have a process begin to import what workers need, which are forked from it later.

    Returns at once. Only the first call has an effect; a worker that needs more imports it itself.

    Args:
        provider: Name of the kernel provider.
    """
    if _FORKED == "forkserver":
        os.environ[PREPARED] = provider
        multiprocessing.set_forkserver_preload(["autotune.measure.cuda.preloaded"])
        with held_back(*_FOR_THE_OWNER):
            forkserver.ensure_running()


class Worker:
    """A process with a handler in it.

    The process leads a process group of its own, so that programs it starts (``ptxas``) end with
    it. It ignores Ctrl-C, SIGTERM and SIGHUP, which are for its owner to heed: a configuration that
    was under way when they came has not failed.
    """

    def __init__(
        self,
        make_handler: Callable[..., Handler],
        args: Sequence[object],
        *,
        is_forked: bool = False,
        variables: Mapping[str, str] = MappingProxyType({}),
    ) -> None:
        """Start the process, without waiting until it is ready.

        Args:
            make_handler: Called once in the process; must be importable by name.
            args: The arguments of ``make_handler``, picklable.
            is_forked: Whether the process is forked from one that is prepared. It must not use a
                GPU then.
            variables: Environment variables that differ from those of this process.
        """
        context: Any = multiprocessing.get_context(_FORKED if is_forked else "spawn")
        self.connection, theirs = context.Pipe()
        environment = dict(os.environ) | dict(variables)
        self._process = context.Process(
            target=_serve, args=(theirs, make_handler, tuple(args), environment), daemon=True
        )
        if is_forked or threading.current_thread() is threading.main_thread():
            self._begin()
        else:
            _STARTER.submit(self._begin).result()
        # At its end Python sends SIGTERM to processes that are left, and waits for them.
        atexit.register(self.kill)
        theirs.close()
        self._is_ready = False

    def _begin(self) -> None:
        with held_back(*_FOR_THE_OWNER):
            self._process.start()

    @property
    def is_ready(self) -> bool:
        """Whether the handler is known to be made."""
        return self._is_ready

    def wait_until_ready(self) -> None:
        """Wait until the handler is made.

        Raises:
            AutotuneError: ``make_handler`` raised it.
            WorkerDied: The process ended first, took too long, or ``make_handler`` raised another
                exception.
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
            WorkerDied: The process ended, did not answer in time, or the handler raised another
                exception.
        """
        self.wait_until_ready()
        return self._receive(time.monotonic() + timeout_s)

    def kill(self) -> None:
        """End the process and everything that it started."""
        atexit.unregister(self.kill)
        if self._process.pid is not None and self._process.is_alive():
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.killpg(self._process.pid, signal.SIGKILL)
            self._process.kill()  # in case it had not yet become the leader of its group
        self._process.join(_LONGEST_END_S)
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
    connection: Connection,
    make_handler: Callable[..., Handler],
    args: tuple[object, ...],
    environment: Mapping[str, str],
) -> None:
    """Run in the process: make the handler, and answer requests until the owner is gone.

    Args:
        connection: Brings requests and takes answers.
        make_handler: Makes the handler.
        args: Its arguments.
        environment: The owner's environment variables: the process that this one was forked from
            has those of another time.
    """
    os.environ.clear()
    os.environ.update(environment)
    os.setsid()
    leave_to_owner(*_FOR_THE_OWNER)
    _be_silent()
    with contextlib.suppress(EOFError, BrokenPipeError):  # the owner is gone
        try:
            handler = make_handler(*args)
        except Exception as error:  # noqa: BLE001 - sent to the owner
            connection.send(_as_answer(error))
            return
        connection.send(_Ready())
        while True:
            request = connection.recv()
            try:
                answer = handler(request)
            except Exception as error:  # noqa: BLE001 - sent to the owner
                answer = _as_answer(error)
            connection.send(answer)


def _end_with(sentinel: int) -> None:
    """Wait until the owner has ended, then end this process and everything that it started.

    The owner is not the parent of a process that was forked for it.
    """
    wait([sentinel])
    with contextlib.suppress(ProcessLookupError, PermissionError):
        if os.getpgrp() == os.getpid():
            os.killpg(os.getpid(), signal.SIGKILL)
    os._exit(1)


def _as_answer(error: Exception) -> AutotuneError | _Fault:
    """What the owner is sent of an exception: our own as they are, of others one line."""
    return error if isinstance(error, AutotuneError) else _Fault(one_line(error))


def _be_silent() -> None:
    """Discard all output: compilers print pages on what fails, and the answer has the reason."""
    nowhere = os.open(os.devnull, os.O_WRONLY)
    for stream in (1, 2):  # standard output and standard error, of child processes too
        os.dup2(nowhere, stream)
    os.close(nowhere)


@contextlib.contextmanager
def held_back(*numbers: signal.Signals) -> Iterator[None]:
    """Hold signals back from processes that are started here, until they ignore them.

    Without it Ctrl-C makes a process that is still importing print a traceback.
    """
    resource_tracker.ensure_running()  # its start ends what is held back
    before = signal.pthread_sigmask(signal.SIG_BLOCK, numbers)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def leave_to_owner(*numbers: signal.Signals) -> None:
    """Ignore signals in this process, and end with the process that started it."""
    for number in numbers:
        signal.signal(number, signal.SIG_IGN)
    owner = multiprocessing.parent_process()
    if owner is not None:
        threading.Thread(target=_end_with, args=(owner.sentinel,), daemon=True).start()
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
